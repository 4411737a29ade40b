"""The search of an attack in half precision; its verdict stays in full precision."""

import pytest
import torch
from cascades import THREAT
from torch import nn

from atent.attacks import FGSM, PGD
from atent.evaluate import evaluate
from atent.precision import Lowered


class Wide(nn.Module):
    """Records the dtype of its convolution, also under autocast."""

    def __init__(self, body):
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, x):
        z = self.body[0](x)
        self.seen.append((z.dtype, z.requires_grad))
        return self.body[1:](z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_search_may_be_in_half_precision_and_the_verdict_never_is(dtype, conv_net, batch):
    x, y = batch(60, torch.float32)
    model = Wide(conv_net(torch.float32))
    full = evaluate(model, x, y, [PGD(THREAT, steps=5)])
    assert {kind for kind, _ in model.seen} == {torch.float32}
    model.seen.clear()
    # an outer autocast does not affect the verdict either
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(model, x, y, [PGD(THREAT, steps=5)], search_dtype=str(dtype).removeprefix("torch."))
    searching = [kind for kind, gradient in model.seen if gradient]
    verdicts = [kind for kind, gradient in model.seen if not gradient]
    assert searching[:5] == [dtype] * 5
    assert set(searching[5:]) <= {torch.float32}  # samples that end near the boundary are attacked again
    assert set(verdicts) == {torch.float32}
    assert got.clean == full.clean
    assert got.search_dtype == str(dtype).removeprefix("torch.")
    assert abs(got.worst["k"] - full.worst["k"]) <= 3
    assert got.worst["k"] < got.clean["k"]
    out = PGD(THREAT, steps=5).run(model, x, y, search_dtype=got.search_dtype)
    with torch.no_grad():
        assert torch.equal(out.success, model(out.x_adv).argmax(1) != y)
    assert out.x_adv.dtype == torch.float32


def test_float16_keeps_gradients_that_it_cannot_hold(conv_net, batch):
    x, y = batch(40, torch.float32)
    model = conv_net(torch.float32)

    def gradient(logits, inputs):
        values = 1e-8 * nn.functional.cross_entropy(logits, y, reduction="none")
        return torch.autograd.grad(values.sum(), inputs)[0].flatten(1)

    inputs = x.clone().requires_grad_()
    exact = gradient(model(inputs), inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs).float()
    assert gradient(logits, inputs).abs().max() == 0
    found = gradient(Lowered(model, "float16")(inputs), inputs)
    sure = exact.norm(dim=1) > 1e-6 * exact.norm(dim=1).max()  # beyond, float32 itself has rounded
    assert sure.sum() > 20
    assert nn.functional.cosine_similarity(1e8 * exact, 1e8 * found, eps=0)[sure].min() > 0.99
    assert torch.allclose(found.norm(dim=1)[sure], exact.norm(dim=1)[sure], rtol=0.1)


def test_what_cannot_be_searched_in_half_is_refused(conv_net, batch):
    with pytest.raises(ValueError, match=r"search_dtype bfloat16 is for a float32 model, this one is torch\.float64"):
        evaluate(conv_net(), *batch(4), [FGSM(THREAT)], search_dtype="bfloat16")
    with pytest.raises(ValueError, match="search_dtype 'int8' is not known: use one of bfloat16, float16"):
        evaluate(conv_net(torch.float32), *batch(4, torch.float32), [FGSM(THREAT)], search_dtype="int8")
