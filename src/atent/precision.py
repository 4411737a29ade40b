"""In which precision a model is seen: half for a search, full for a verdict, and whether bfloat16 pays here."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent.fields import shown
from atent.guard import ask, dtype_of, guard
from atent.threads import choose

SearchDtype = Literal["bfloat16", "float16"]
SEARCH_DTYPES: tuple[str, ...] = ("bfloat16", "float16")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, a model computes in its own type: no autocast, and no TF32 in the products and convolutions of a GPU."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        kinds, name, exact = _tf32_switches()
        before = [getattr(kind, name) for kind in kinds]
        try:
            for kind in kinds:
                setattr(kind, name, exact)
            yield
        finally:
            for kind, value in zip(kinds, before):
                setattr(kind, name, value)


def _tf32_switches() -> tuple[list[Any], str, Any]:
    """Where TF32 is set, the attribute, and its value for none: torch allows one of its two interfaces per process."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    old: list[Any] = [cuda.matmul, cudnn]
    try:
        _ = [kind.allow_tf32 for kind in old]
    except RuntimeError:  # the new interface is in use
        new: Any = cudnn
        return [cuda.matmul, new.conv, new.rnn], "fp32_precision", "ieee"
    return old, "allow_tf32", False


def twin(model: nn.Module, x: Tensor) -> tuple[nn.Module, torch.dtype]:
    """A float64 copy of the model, or the model itself where it has none (it cannot be copied, or fixes a type)."""
    try:
        with torch.no_grad():  # a script's weights would remember the cast
            double = copy.deepcopy(model).double()
        with guard(double, mode="eval", seed=0), full_precision(x.device), torch.no_grad():
            if ask(double, x.double()).dtype == torch.float64:
                return double, torch.float64
    except Exception:  # whatever a user's copy or forward raises
        pass
    return model, x.dtype


def images_last(model: nn.Module, x: Tensor) -> bool:
    """Whether ``model`` takes images in the channels-last memory format; where it does not, a warning says so."""
    refused = refuses_channels_last(model, x)
    if refused is not None:
        warnings.warn(refused, stacklevel=2)
    return refused is None and x.dim() == 4


def refuses_channels_last(model: nn.Module, x: Tensor) -> str | None:
    """One line where ``model``, in eval mode, cannot take ``x`` (n, c, h, w) in the channels-last memory format.

    Tried on the first two images, forward and backward; a network that flattens by ``view`` fails. None where it can,
    where ``x`` holds no images, and where the network fails in the usual format too, which is none of the format's
    doing.
    """
    if x.dim() != 4 or not len(x):
        return None
    some = x[:2].detach()
    try:
        # Not contiguous(), which leaves images of one channel as they are: either format fits those.
        _forward_and_backward(model, some.clone(memory_format=torch.channels_last))
        return None
    except Exception as error:  # whatever a user's forward raises
        reason = str(error).partition("\n")[0].partition(" (at least")[0]
    try:
        _forward_and_backward(model, some.contiguous())
    except Exception:
        return None
    return f"the model does not take channels-last images ({reason}): the usual memory format is used"


def _forward_and_backward(model: nn.Module, x: Tensor) -> None:
    with guard(model, mode="eval"), torch.enable_grad():
        x = x.requires_grad_()
        logits = ask(model, x)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), x)


class Lowered(nn.Module):
    """A float32 model under autocast, for searching: float32 inputs in, float32 logits and input gradients out.

    Gradients are scaled on their way through the network so that each sample's largest is 1 at the logits, and scaled
    back at the input: otherwise the small ones of a confident sample would be lost in float16. ValueError for a model
    of another type than float32, and for an unknown type.
    """

    def __init__(self, model: nn.Module, dtype: str) -> None:
        super().__init__()
        if not isinstance(dtype, str) or dtype not in SEARCH_DTYPES:
            raise ValueError(
                f"search_dtype {shown(dtype)} is not known: use one of {', '.join(SEARCH_DTYPES)}, or none"
            )
        own = dtype_of(model)
        if own not in (None, torch.float32):
            raise ValueError(f"search_dtype {dtype} is for a float32 model, this one is {own}: leave it out")
        self.model, self.dtype = model, getattr(torch, dtype)

    def forward(self, x: Tensor) -> Tensor:
        inner = x.view_as(x)
        with torch.autocast(x.device.type, dtype=self.dtype):
            logits: Tensor = self.model(inner)
        if not isinstance(logits, Tensor):
            return logits
        logits = logits.float()
        if logits.requires_grad and inner.requires_grad and logits.dim() == 2:
            largest = torch.ones(len(x), device=x.device)

            def shrink(grad: Tensor) -> Tensor:
                nonlocal largest
                top = grad.abs().amax(1)
                largest = torch.where(top > 0, top, torch.ones_like(top))
                return grad / largest[:, None]

            logits.register_hook(shrink)
            inner.register_hook(lambda grad: grad * largest.reshape(-1, *[1] * (grad.dim() - 1)))
        return logits


# ---- does bfloat16 pay? --------------------------------------------------------------------------------------------

# Relative error of what distinguishes the samples' logits. bfloat16 has 8 bits, so a layer rounds by up to 2^-8 of its
# largest numbers; the built-in networks, untrained and on noise, lose up to 0.24, one that rounds its input away all.
_LOGITS = 0.5
# Mean cosine of the input gradients. Units near zero change their side under rounding, so that an untrained network of
# 110 layers has 0.91; a network whose rounding hides the input falls to about 0.
_COSINE = 0.8
_SECONDS = 3.0
_REPEATS = 7
# A first pass in bfloat16 this many times slower than in float32 is measured once more, and never a third time.
_HOPELESS = 8.0


@dataclass(frozen=True)
class Timing:
    """What one forward pass and input gradient cost in float32 and under bfloat16 autocast, and how the two agree."""

    samples: int
    """Samples in the batch that was measured."""
    float32: float
    """Seconds, the median of the repeats."""
    bfloat16: float
    """Seconds, the median of the repeats."""
    logits: float
    """||b - a|| / ||a|| of the logits less their means over classes and samples, a in float32; may be NaN or inf."""
    cosine: float
    """Mean over the samples of the cosine between the two input gradients; 1 where both are zero."""

    @property
    def faster(self) -> bool:
        """Whether bfloat16 takes less time than float32."""
        return self.bfloat16 < self.float32

    @property
    def agrees(self) -> bool:
        """Whether logits differ by at most 50 % and input gradients have a mean cosine of at least 0.8."""
        return self.logits <= _LOGITS and self.cosine >= _COSINE  # false for NaN

    @property
    def pays(self) -> bool:
        """Whether bfloat16 is faster and agrees."""
        return self.faster and self.agrees

    def __str__(self) -> str:
        return (
            f"forward pass and input gradient at batch {self.samples} take {1e3 * self.bfloat16:.3g} ms in bfloat16 and"
            f" {1e3 * self.float32:.3g} ms in float32; logits differ by {self.logits:.1%}, input gradients have cosine"
            f" {self.cosine:.2f}"
        )


def bfloat16_pays(
    model: nn.Module,
    shape: tuple[int, ...],
    device: torch.device | str,
    *,
    batch: int = 64,
    x: Tensor | None = None,
    channels_last: bool = False,
) -> Timing:
    """Measure whether ``model`` (float32, on ``device``) is faster under bfloat16 autocast there, and agrees.

    Times are medians of interleaved passes in eval mode, forward and input gradient of the cross-entropy, over ``x``
    (n, c, h, w) or (n, d), default: ``batch`` samples of uniform noise in [0, 1] of sample shape ``shape``. All takes
    less than 3 s where a pass of two samples takes less than 0.25 s: a slow network sees fewer samples, and a bfloat16
    that is many times slower is tried twice. The model and the random state come back as they were.

    Raises ValueError for a model of another type than float32, and where the network fails under autocast.
    """
    own = dtype_of(model)
    if own not in (None, torch.float32):
        raise ValueError(f"precision bfloat16 is for a float32 model, this one is {own}: use precision float32")
    device, end = torch.device(device), perf_counter() + _SECONDS
    if x is None:
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    layout = torch.channels_last if channels_last and x.dim() == 4 else torch.contiguous_format
    x = x.detach().to(device).contiguous(memory_format=layout)
    with guard(model, mode="eval", seed=0):
        return _measure(lambda n, low: _pass(model, x[:n], low), len(x), end)


_Pass = Callable[[int, bool], tuple[float, Tensor, Tensor]]


def _measure(run: _Pass, most: int, end: float) -> Timing:
    """``run(n, low)`` gives seconds, logits and input gradients of n samples, in bfloat16 where ``low``."""
    n = min(2, most)
    while True:
        # The first passes of a shape prepare kernels and memory.
        run(n, False)
        slow, *exact = run(n, False)
        fast, *rounded = run(n, True)
        if fast > _HOPELESS * slow:
            fast = run(n, True)[0]
        hopeless = fast > _HOPELESS * slow
        # What is left must hold the larger batch: the four passes above, a pair that counts, and a third more to spare.
        larger = min(most, 8 * n, int(n * (end - perf_counter()) / (4 * (slow + fast))))
        if hopeless or larger < min(2 * n, most) or larger == n:
            break
        n = larger
    times: dict[bool, list[float]] = {False: [slow], True: [fast]}
    if not hopeless:
        run(n, True)
        times = {low: [run(n, low)[0]] for low in (False, True)}
        while len(times[True]) < _REPEATS and perf_counter() + times[False][-1] + times[True][-1] < end:
            for low, kept in times.items():
                kept.append(run(n, low)[0])
    logits, cosine = _agreement(exact, rounded)
    return Timing(n, median(times[False]), median(times[True]), logits, cosine)


def _pass(model: nn.Module, x: Tensor, low: bool) -> tuple[float, Tensor, Tensor]:
    """Seconds, logits and input gradients of one pass."""
    # A network may change its input in place.
    leaf = x.clone().requires_grad_()
    begun = _now(x.device)
    with torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, enabled=low):
        try:
            logits = model(leaf.clone()).float()
            labels = torch.arange(len(x), device=x.device) % logits.shape[1]
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
        except Exception as error:
            reason = " ".join([type(error).__name__ + ":", *str(error).strip().splitlines()[:1]])
            raise ValueError(
                f"the network fails {'under bfloat16 autocast' if low else 'in float32'} where precision bfloat16 is"
                f" measured ({reason}): use precision float32"
            ) from error
    seconds = _now(x.device) - begun
    return seconds, logits.detach(), grad.flatten(1)


def gaining(model: nn.Module, x: Tensor, *, low: bool = False) -> int:
    """How many CPU threads a forward pass and input gradient on ``x`` gain from, see `atent.threads.choose`.

    A slow network sees fewer samples, so that one pass takes about half a second at most.
    """
    with guard(model, mode="eval", seed=0):
        few = x[:2]
        _pass(model, few, low)
        seconds = _pass(model, few, low)[0] / len(few)
        n = max(1, min(len(x), int(0.5 / max(seconds, 1e-9))))
        return choose(lambda: _pass(model, x[:n], low))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _agreement(exact: list[Tensor], rounded: list[Tensor]) -> tuple[float, float]:
    """The relative error of the logits, and the mean cosine of the gradients, in float64."""
    (logits, grads), (low, low_grads) = ([t.double() for t in pair] for pair in (exact, rounded))
    # Softmax knows no shift, and what all samples share separates no two.
    logits, low = (z - z.mean(1, keepdim=True) for z in (logits, low))
    if len(logits) > 1:
        logits, low = (z - z.mean(0) for z in (logits, low))
    size, error = float(logits.norm()), float((low - logits).norm())
    # The last layer of an untrained network may be zero.
    relative = error / size if size else (float("inf") if error else 0.0)
    both = grads.norm(dim=1) * low_grads.norm(dim=1)
    none = (grads == 0).all(1) & (low_grads == 0).all(1)
    cosines = torch.where(none, torch.ones_like(both), (grads * low_grads).sum(1) / both)
    return relative, float(cosines.nan_to_num(0.0).mean())
