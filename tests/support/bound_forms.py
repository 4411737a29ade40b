"""The forms of torch in which the code of a network may say the same: those that bounds read alike."""

import math
import operator

import torch
from bound_networks import shuffled
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """A network of inputs (1, 4, 4) whose middle part, of (4, 4, 4), is given by a test, as a function or a layer."""

    def __init__(self, middle):
        super().__init__()
        self.middle = middle if isinstance(middle, nn.Module) else lambda z: middle(self, z)
        self.conv, self.mix, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ReLU()
        self.square, self.gain = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.tensor([0.3, -0.1, 0.2, 0.5]).view(4, 1, 1))
        self.conv1, self.conv2 = nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.Conv2d(4, 6, (2, 3), 2, 1, groups=2)
        self.up1, self.up2 = nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, 2), nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, 2)
        self.same, self.linear = nn.Conv1d(4, 4, 3, padding=2, dilation=2), nn.Linear(4, 5)
        self.bn1 = nn.BatchNorm2d(4, eps=0.1)
        self.prelu, self.even = nn.PReLU(4), nn.Conv1d(4, 4, 2, padding="same")
        self.mirror = nn.Conv2d(4, 4, (3, 2), padding=(1, 2), padding_mode="reflect")
        self.fc = nn.LazyLinear(3)

    def forward(self, x):
        return self.fc(self.middle(self.conv(x)).flatten(1))


def net_of(middle, width=None):
    net = Net(middle)
    if width is None:
        net(torch.zeros(2, 1, 4, 4))
    else:
        net.fc = nn.Linear(width, 3)
    return shuffled(net)


def row(z):
    return z.view(-1, 4, 16)


TWINS = {
    "sum": (
        lambda m, z: z + m.mix(z) + 2,
        lambda m, z: torch.add(2, z.add(m.mix(z))),
        lambda m, z: m.mix(z).add_(z).add_(2),
        lambda m, z: operator.iadd(operator.iadd(m.mix(z), z), 2),
    ),
    "difference": (
        lambda m, z: 0.2 - (z - m.mix(z)),
        lambda m, z: torch.rsub(torch.subtract(z, m.mix(z)), 0.2),
        lambda m, z: torch.rsub(input=z.clone().subtract_(m.mix(z)), other=0.2),
        lambda m, z: torch.subtract(0.2, operator.isub(z.clone(), m.mix(z))),
    ),
    "product": (
        lambda m, z: 2 * (z * m.shift),
        lambda m, z: torch.multiply(z.multiply(m.shift), 2),
        lambda m, z: operator.imul(z.multiply_(m.shift), 2),
    ),
    "quotient": (
        lambda m, z: z / m.gain.view(4, 1, 1) / 2,
        lambda m, z: torch.divide(z.true_divide(m.gain.view(4, 1, 1)), 2),
        lambda m, z: operator.itruediv(z.divide_(m.gain.view(4, 1, 1)), 2),
        lambda m, z: torch.true_divide(z.true_divide_(m.gain.view(4, 1, 1)), 2),
    ),
    "sign": (
        lambda m, z: (-z).abs() - z,
        lambda m, z: torch.absolute(torch.negative(z)) + torch.positive(-z),
        lambda m, z: z.negative().absolute_() - (+z),
    ),
    "relu": (
        lambda m, z: m.relu(z),
        lambda m, z: z.clamp(min=0),
        lambda m, z: torch.clip(z, 0),
        lambda m, z: z.clamp_min_(0),
        lambda m, z: z.clamp(0, math.inf),
        lambda m, z: F.hardtanh(z, 0.0, math.inf),
        lambda m, z: F.threshold(z, 0, 0),
        lambda m, z: torch.threshold_(z, 0, 0),
        lambda m, z: torch.maximum(z, torch.zeros(())),
        lambda m, z: torch.relu_(z),
        nn.Threshold(0.0, 0.0),
    ),
    "clamp": (
        nn.Hardtanh(-0.2, 0.25),
        lambda m, z: F.hardtanh_(z, -0.2, 0.25),
        lambda m, z: z.clip_(-0.2, 0.25),
        lambda m, z: torch.minimum(torch.clamp_min(z, -0.2), torch.tensor(0.25)),
        lambda m, z: F.threshold(z, -0.2, -0.2).clamp_max(0.25),
    ),
    "limits of each channel": (
        lambda m, z: m.shift - m.relu(m.shift - z),
        lambda m, z: z.clamp(max=m.shift),
        lambda m, z: torch.minimum(m.shift, z),
        lambda m, z: torch.min(z, m.shift),
        lambda m, z: -(-z).max(-m.shift.detach()),
    ),
    "relu6": (nn.ReLU6(), lambda m, z: F.relu6(z)),
    "leaky": (nn.LeakyReLU(0.2), lambda m, z: F.leaky_relu_(z, 0.2), lambda m, z: F.rrelu(z, 0.1, 0.3)),
    "sigmoid": (nn.Sigmoid(), lambda m, z: torch.special.expit(z), lambda m, z: z.sigmoid_()),
    "tanh": (nn.Tanh(), lambda m, z: torch.tanh_(z)),
    "silu": (nn.SiLU(), lambda m, z: F.silu(z, inplace=True)),
    "gelu": (nn.GELU("tanh"), lambda m, z: F.gelu(z, approximate="tanh")),
    "elu": (nn.ELU(), lambda m, z: F.elu_(z), lambda m, z: torch.celu(z), nn.CELU()),
    "elu of another height": (nn.ELU(0.4), lambda m, z: F.elu(z, 0.4, inplace=True)),
    "elu of another width": (lambda m, z: F.elu(z / 0.4) * 0.4, nn.CELU(0.4), lambda m, z: torch.celu_(z, 0.4)),
    "selu": (nn.SELU(), lambda m, z: F.selu(z, inplace=True), lambda m, z: torch.selu(z)),
    "mish": (nn.Mish(), lambda m, z: F.mish(z, inplace=True)),
    "hard swish": (nn.Hardswish(), lambda m, z: F.hardswish(z, True)),
    "hard sigmoid": (
        lambda m, z: (z + 3).clamp(0, 6) / 6,
        nn.Hardsigmoid(),
        lambda m, z: F.hardsigmoid(z, inplace=True),
    ),
    "softplus": (lambda m, z: F.softplus(z * 3) / 3, nn.Softplus(3), lambda m, z: F.softplus(z, beta=3.0)),
    "log sigmoid": (lambda m, z: -F.softplus(-z, threshold=60), nn.LogSigmoid(), lambda m, z: F.logsigmoid(z)),
    "softsign": (nn.Softsign(), lambda m, z: F.softsign(z)),
    "tanhshrink": (nn.Tanhshrink(), lambda m, z: F.tanhshrink(z)),
    "softshrink": (
        lambda m, z: F.relu(z - 0.2) - F.relu(-z - 0.2),
        nn.Softshrink(0.2),
        lambda m, z: F.softshrink(z, 0.2),
    ),
    "slopes of channels": (
        lambda m, z: m.prelu(z),
        lambda m, z: F.prelu(z, m.prelu.weight),
        lambda m, z: z.prelu(weight=m.prelu.weight),
        lambda m, z: m.prelu(z.flatten(2)),
    ),
    "copies": (
        lambda m, z: m.relu(z),
        lambda m, z: z.clone().relu_() + 0 * z,
        lambda m, z: torch.clone(F.relu(z)).contiguous(memory_format=torch.channels_last),
    ),
    "casts": (
        lambda m, z: m.relu(z),
        lambda m, z: F.relu(z.to(m.gain.dtype)).to(z.dtype),
        lambda m, z: F.relu(z.to(z.device, non_blocking=True)).type_as(m.gain),
        lambda m, z: z.type(m.gain.dtype).to(m.gain).relu(),
        lambda m, z: z.to(memory_format=torch.channels_last, dtype=m.gain.dtype).relu(),
    ),
    "casts of a constant": (
        lambda m, z: (z - m.shift) * m.gain.view(4, 1, 1),
        lambda m, z: (z - m.shift.to(z.device)) * m.gain.type_as(z).view(4, 1, 1).expand_as(z),
        lambda m, z: (z - m.shift.to(z)) * m.gain.to(z.dtype).clone().view(4, 1, 1),
    ),
    "new dimensions": (
        lambda m, z: m.relu(z),
        lambda m, z: F.relu(z.unsqueeze(1)).squeeze(1),
        lambda m, z: torch.squeeze(z[:, :, None].relu_(), -3),
        lambda m, z: F.relu(z[..., None]).squeeze((-1,)),
        lambda m, z: torch.unsqueeze(z, -1).relu()[..., 0],
    ),
    "order of dimensions": (
        lambda m, z: m.linear(z.permute(0, 3, 1, 2)),
        lambda m, z: m.linear(torch.permute(z, (0, -1, 1, 2))),
        lambda m, z: m.linear(z.permute(dims=(0, 3, 1, 2))),
        lambda m, z: m.linear(z.movedim(-1, 1)),
        lambda m, z: m.linear(torch.moveaxis(z, (3, 1), (1, 2))),
        lambda m, z: m.linear(z.transpose(2, 3).swapaxes(axis0=1, axis1=2)),
        lambda m, z: m.linear(torch.swapdims(z.mT, 1, 2)),
    ),
    "parts": (
        lambda m, z: torch.cat([z[:, 1:3, 0], z[:, 0, 2:]], 1),
        lambda m, z: torch.concat([z.narrow(1, 1, 2)[:, :, 0], z[:, 0].narrow(1, 2, 2)], 1),
        lambda m, z: torch.hstack([z.narrow(1, 1, 2).select(2, 0), torch.select(z, 1, 0).narrow(-2, 2, 2)]),
        lambda m, z: torch.concatenate((z[:, 1:3].select(-2, 0), z[:, 0, 2:]), axis=-2),
    ),
    "halves": (
        lambda m, z: torch.cat([z[:, 2:], m.relu(z[:, :2])], 1),
        lambda m, z: torch.cat([z.chunk(2, 1)[1], m.relu(torch.chunk(z, chunks=2, dim=1)[0])], 1),
        lambda m, z: torch.cat([torch.split(z, 2, dim=-3)[1], m.relu(z.split([2, 2], 1)[0])], 1),
        lambda m, z: (lambda parts: torch.cat([parts[-1], m.relu(parts[0])], 1))(z.tensor_split((2,), dim=1)),
        lambda m, z: torch.stack([z.unbind(1)[2], z[:, 3], m.relu(z).unbind(dim=1)[0], m.relu(z[:, 1])], 1),
    ),
    "stack": (
        lambda m, z: torch.cat([z.unsqueeze(2), m.mix(z).unsqueeze(2)], 2),
        lambda m, z: torch.stack([z, m.mix(z)], 2),
        lambda m, z: torch.stack(dim=-3, tensors=(z, m.mix(z))),
    ),
    "vectors": (
        lambda m, z: z.view(-1, 8, 8),
        lambda m, z: z.reshape(z.shape[0], 8, -1),
        lambda m, z: z.flatten(1).unflatten(1, (8, 8)),
        lambda m, z: torch.unflatten(z, 1, (2, 2)).flatten(2, 3).flatten(2).view((z.size(0), 8, 8)),
        lambda m, z: z.unflatten(-1, (2, -1)).reshape([-1, 8, 8]),
        lambda m, z: z.view(z.size()[0], 8, 8),
    ),
    "own sizes": (
        lambda m, z: m.conv1(row(z)),
        lambda m, z: m.conv1(z.view(z.size(0), z.size(1), -1)),
        lambda m, z: m.conv1(z.reshape(z.shape[0], z.shape[1], -1)),
        lambda m, z: m.conv1(z.reshape(z.shape[0], 4, z.shape[2] * z.shape[3])),
        lambda m, z: m.conv1(z.view(-1, z.size(1) * 2 // 2, z.size(1) + 12)),
        lambda m, z: m.conv1(z.view(z.shape[0], -1, math.prod(z.shape[2:]))),
        lambda m, z: m.conv1(z.view(-1, 4, z.size()[-2:].numel())),
        lambda m, z: m.conv1(z.flatten(2)),
    ),
    "mean over the image": (
        nn.AdaptiveAvgPool2d(1),
        lambda m, z: F.adaptive_avg_pool2d(z, (1, 1)),
        lambda m, z: z.mean(3).mean(-1),
        lambda m, z: torch.mean(z, (-1, 2), keepdim=True),
        lambda m, z: z.flatten(2).mean(dim=2),
        lambda m, z: torch.adaptive_avg_pool1d(row(z), 1),
        nn.Sequential(nn.Flatten(2), nn.AdaptiveAvgPool1d(1)),
        lambda m, z: F.avg_pool2d(z, z.size()[2:]),
        lambda m, z: F.avg_pool2d(z, (z.shape[-2], z.shape[-1])).squeeze(3),
        lambda m, z: F.avg_pool2d(z, kernel_size=z.size(3)),
        lambda m, z: z.sum((2, 3)) / 16,
        lambda m, z: torch.sum(z, dim=-1, keepdim=True).sum(axis=2, keepdims=True) / 16,
    ),
    "mean over channels": (
        lambda m, z: (z[:, 0] + z[:, 1] + z[:, 2] + z[:, 3]) / 4,
        lambda m, z: z.mean(1),
        lambda m, z: torch.sum(z, 1, True) / 4,
        lambda m, z: z.permute(0, 2, 3, 1).mean(-1),
    ),
    "one value": (
        lambda m, z: z[:, 0, 0, :1] * 2,
        lambda m, z: z[:, 0, 0, 0].unsqueeze(1) * 2,
        lambda m, z: torch.stack([z[:, 0, 0, 0].mul(2)], -1),
        lambda m, z: z.select(1, 0).select(1, 0).select(1, 0).mul(2)[..., None],
    ),
    "average pooling": (
        lambda m, z: F.avg_pool2d(z, 2, (1, 2), 1),
        lambda m, z: torch._C._nn.avg_pool2d(z, [2, 2], [1, 2], [1, 1]),
        nn.AvgPool2d(2, (1, 2), 1),
    ),
    "average pooling of a row": (
        lambda m, z: F.avg_pool2d(row(z).unsqueeze(2), (1, 3), (1, 2), (0, 1)),
        lambda m, z: torch.avg_pool1d(row(z), 3, 2, 1),
        nn.Sequential(nn.Flatten(2), nn.AvgPool1d(3, 2, 1)),
    ),
    "max-pooling": (
        nn.MaxPool2d(2, 1, 1),
        lambda m, z: torch.max_pool2d(z, 2, 1, 1),
        lambda m, z: F.max_pool2d(z, [2, 2], stride=1, padding=1, return_indices=False),
    ),
    "max-pooling of a row": (
        lambda m, z: F.max_pool2d(row(z).unsqueeze(2), (1, 3), (1, 2), (0, 1)),
        lambda m, z: F.max_pool1d(row(z), 3, 2, 1),
        nn.Sequential(nn.Flatten(-2, -1), nn.MaxPool1d(3, 2, 1)),
    ),
    "repeats": (
        lambda m, z: torch.cat([z, z], 1),
        lambda m, z: z.repeat(1, 2, 1, 1),
        lambda m, z: z.repeat((1, 2, 1, 1)),
        lambda m, z: z.unsqueeze(1).expand(-1, 2, -1, -1, -1).flatten(1, 2),
    ),
    "repeats of each": (
        lambda m, z: torch.stack([z, z], 2).flatten(1, 2),
        lambda m, z: z.repeat_interleave(2, 1),
        lambda m, z: torch.repeat_interleave(z, repeats=2, dim=-3),
    ),
    "one channel as several": (
        lambda m, z: torch.cat([z[:, :1], z[:, :1], z[:, :1]], 1),
        lambda m, z: z[:, :1].expand(-1, 3, -1, -1),
        lambda m, z: (lambda a: a.expand(a.size(0), 3, a.shape[2], 4))(z[:, :1]),
        lambda m, z: torch.narrow(z, 1, 0, 1).expand((-1, 3, 4, 4)),
    ),
    "reversed": (
        lambda m, z: torch.stack([z[..., 3], z[..., 2], z[..., 1], z[..., 0]], -1),
        lambda m, z: z.flip(3),
        lambda m, z: torch.flip(z, (-1,)),
        lambda m, z: z.flip(dims=[3]),
        lambda m, z: torch.flip(z, [2, 3]).flip(2),
        lambda m, z: torch.fliplr(z.transpose(1, 3)).transpose(1, 3),
    ),
    "rolled": (
        lambda m, z: torch.cat([z[..., 3:], z[..., :3]], 3),
        lambda m, z: z.roll(1, 3),
        lambda m, z: torch.roll(z, shifts=(1, 4), dims=(-1, 2)),
    ),
    "enlarged": (
        lambda m, z: z.repeat_interleave(2, 2).repeat_interleave(2, 3),
        lambda m, z: F.interpolate(z, scale_factor=2),
        lambda m, z: F.interpolate(z, (8, 8), mode="nearest-exact"),
        nn.Upsample(scale_factor=2),
        nn.UpsamplingNearest2d(8),
    ),
    "pixels from channels": (
        lambda m, z: z.view(-1, 2, 2, 4, 4).permute(0, 3, 1, 4, 2).reshape(-1, 1, 8, 8),
        lambda m, z: F.pixel_shuffle(z, 2),
        nn.PixelShuffle(2),
    ),
    "channels from pixels": (
        lambda m, z: z.view(-1, 4, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 16, 2, 2),
        lambda m, z: torch.pixel_unshuffle(z, downscale_factor=2),
        nn.PixelUnshuffle(2),
    ),
    "channels of groups": (
        lambda m, z: z.view(-1, 2, 2, 4, 4).transpose(1, 2).reshape(-1, 4, 4, 4),
        lambda m, z: F.channel_shuffle(z, 2),
        nn.ChannelShuffle(2),
    ),
    "padding by mirror images": (
        lambda m, z: (lambda a: torch.cat([a[:, :, 1:2], a], 2))(torch.cat([z[..., 2:3], z[..., 1:2], z], 3)),
        lambda m, z: F.pad(z, (2, 0, 1, 0), mode="reflect"),
        nn.ReflectionPad2d((2, 0, 1, 0)),
        nn.Sequential(
            nn.ReflectionPad2d((2, 0, 0, 0)),
            nn.Flatten(1, 2),
            nn.Unflatten(1, (4, 4)),
            nn.ReflectionPad2d((0, 0, 1, 0)),
        ),
    ),
    "padding by the border": (
        lambda m, z: torch.cat([z[..., :1], z[..., :1], z, z[..., 3:]], 3),
        lambda m, z: F.pad(z, (2, 1, 0, 0), "replicate"),
        nn.ReplicationPad2d((2, 1, 0, 0)),
        nn.Sequential(nn.Flatten(1, 2), nn.ReplicationPad1d((2, 1)), nn.Unflatten(1, (4, 4))),
    ),
    "padding by the other side": (
        lambda m, z: torch.cat([z[..., 2:], z, z[..., :1]], 3),
        lambda m, z: F.pad(z, (2, 1, 0, 0), "circular"),
        nn.CircularPad2d((2, 1, 0, 0)),
        nn.Sequential(nn.Flatten(1, 2), nn.CircularPad1d((2, 1)), nn.Unflatten(1, (4, 4))),
    ),
    "convolution of mirror images": (
        lambda m, z: F.conv2d(F.pad(z, (2, 2, 1, 1), "reflect"), m.mirror.weight, m.mirror.bias),
        lambda m, z: m.mirror(z),
    ),
    "convolution to the same size by an even window": (
        lambda m, z: F.conv1d(F.pad(row(z), (0, 1)), m.even.weight, m.even.bias),
        lambda m, z: m.even(row(z)),
        lambda m, z: F.conv1d(row(z), m.even.weight, m.even.bias, padding="same"),
    ),
    "linear": (
        lambda m, z: m.linear(z),
        lambda m, z: F.linear(z, m.linear.weight, m.linear.bias),
        lambda m, z: z @ m.linear.weight.T + m.linear.bias,
        lambda m, z: torch.matmul(z, m.linear.weight.t()).add(m.linear.bias),
        lambda m, z: z.matmul(m.linear.weight.mT) + m.linear.bias,
        lambda m, z: F.linear(z, m.linear.weight.to(z.device)) + m.linear.bias,
    ),
    "linear of a vector": (lambda m, z: F.linear(z[:, 0, 0], m.square), lambda m, z: z[:, 0, 0].mm(m.square.T)),
    "padding": (nn.ZeroPad2d((1, 0, 2, 1)), lambda m, z: F.pad(input=z, pad=[1, 0, 2, 1], mode="constant")),
    "convolution": (
        lambda m, z: m.conv2(z),
        lambda m, z: F.conv2d(z, m.conv2.weight, m.conv2.bias, 2, [1, 1], groups=2),
        lambda m, z: torch.conv2d(z, m.conv2.weight, m.conv2.bias, (2,), 1, 1, 2),
    ),
    "convolution of a row": (
        lambda m, z: m.conv1(row(z)),
        lambda m, z: F.conv1d(row(z), m.conv1.weight, m.conv1.bias, 2, 1, groups=2),
        lambda m, z: torch.conv1d(row(z), m.conv1.weight, m.conv1.bias, (2,), (1,), 1, 2),
    ),
    "convolution to the same size": (
        lambda m, z: m.same(row(z)),
        lambda m, z: F.conv1d(row(z), m.same.weight, m.same.bias, padding="same", dilation=2),
    ),
    "transposed convolution": (
        lambda m, z: m.up2(z),
        lambda m, z: F.conv_transpose2d(z, m.up2.weight, m.up2.bias, 2, 1, 1, 2),
        lambda m, z: torch.conv_transpose2d(z, m.up2.weight, m.up2.bias, [2, 2], 1, output_padding=1, groups=2),
    ),
    "transposed convolution of a row": (
        lambda m, z: m.up1(row(z)),
        lambda m, z: F.conv_transpose1d(row(z), m.up1.weight, m.up1.bias, 2, 1, 1, 2),
    ),
    "batch norm": (
        lambda m, z: m.bn1(z),
        lambda m, z: F.batch_norm(
            z, m.bn1.running_mean, m.bn1.running_var, m.bn1.weight, m.bn1.bias, training=m.training, eps=0.1
        ),
    ),
    "batch norm of a row": (
        lambda m, z: row(m.bn1(z)),
        lambda m, z: F.batch_norm(
            row(z), m.bn1.running_mean, m.bn1.running_var, m.bn1.weight, m.bn1.bias, False, 0.1, 0.1
        ),
    ),
}
