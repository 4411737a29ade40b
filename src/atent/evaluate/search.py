"""The network, precision and memory format in which attacks search for adversarial inputs.

A search may run on a folded copy of the network (`atent.folded`) and in a low precision. The verdict does not: each
returned tensor is evaluated by the network itself, in its own precision. Two kinds of samples are attacked a second
time, on the network itself in its own precision, with the same random numbers:

- those that are fooled in the search and correctly classified by the network itself;
- those that remain correctly classified with a margin of at most ``NEAR`` units of the search's precision, times the
  largest deviation of the sample's logits from their mean. The unit is 2^-8 for bfloat16, 2^-11 for float16 and tf32
  and that of the network for a folded search.

So rounding can miss a fooled sample only where the search in low precision ends further from the boundary than that. A
minimum-norm attack, and a composite one with such a part, searches in the network's own precision: its points lie on
the boundary, where rounding decides.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack, Outcome
from atent.attacks.wrapper import nest
from atent.checks import check_logits
from atent.contracts import owned
from atent.evaluate.outcomes import attacked
from atent.fields import check_flag, shown
from atent.folded import fold, has_batch_norm
from atent.guard import ask, guard
from atent.losses import magnitude, margin
from atent.messages import first_only, note, once
from atent.precision import Lowered, SearchDtype, full_precision, images_last
from atent.probe import AUTO, Auto, probe
from atent.rng import narrow

NEAR = 16
"""Units of the search's precision, relative to the logits, within which a margin counts as near the boundary."""
_UNITS = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}


@dataclass(frozen=True, eq=False)
class Search:
    """How attacks search on a model; see the module."""

    model: nn.Module
    """The model itself, which decides the verdicts."""
    network: nn.Module
    """The network that is attacked: a folded copy, or the model itself."""
    dtype: SearchDtype | None = None
    """Precision of the search; None: that of the model."""
    channels_last: bool = False
    """Memory format of the search."""
    folded: int = 0
    """Batch norms folded in ``network``."""

    def attacked(
        self, attack: Attack, x: Tensor, y: Tensor, *, seed: int, ids: Tensor, part: str | None = None,
        remark: Callable[[str], None] | None = None,
    ) -> Outcome:  # fmt: skip
        """As `outcomes.attacked`, with verdicts of the model itself.

        Samples whose verdict the precision of the search could have decided are attacked a second time.
        """
        run = attack if part is None else attack.parts()[part]
        dtype = None if any(each.minimum_norm for each in nest(run)) else self.dtype
        how: dict[str, Any] = {"seed": seed, "part": part, "channels_last": self.channels_last, "remark": remark}
        out = attacked(attack, self.network, x, y, ids=ids, search_dtype=dtype, **how)
        _check_passes(attack, run.passes, out)
        if not len(x) or (self.network is self.model and dtype is None):
            return out
        wrong, near = self._verdict(out.x_adv, y, seed, _UNITS[dtype] if dtype else torch.finfo(x.dtype).eps / 2)
        # A model with random numbers is never folded, and its verdict uses the attack's own random numbers.
        success = out.success if self.network is self.model else wrong
        again = (~success & (out.success | near)).nonzero().squeeze(1)
        out = out._replace(success=success)
        if not len(again):
            return out
        second = attacked(attack.of(again), self.model, x[again], y[again], ids=ids[again], **how)
        merged = {
            "x_adv": out.x_adv.index_copy(0, again, second.x_adv),
            "success": success.index_copy(0, again, second.success),
            "norm": out.norm.index_copy(0, again, second.norm),
            "forwards": out.forwards.index_add(0, again, second.forwards),
            "backwards": out.backwards.index_add(0, again, second.backwards),
        }
        return Outcome(**merged)

    @torch.no_grad()
    def classes(self, out: Outcome, seed: int) -> Tensor:
        """Classes int64 (n,), on the CPU, that the model predicts for the adversarial inputs; -1 where it is not
        fooled."""
        found = torch.full(out.success.shape, -1)
        if bool(out.success.any()):
            with guard(self.model, mode="eval", seed=narrow(seed)), full_precision(out.x_adv.device):
                found[out.success.cpu()] = ask(self.model, out.x_adv[out.success]).argmax(1).cpu()
        return found

    @torch.no_grad()
    def _verdict(self, x: Tensor, y: Tensor, seed: int, unit: float) -> tuple[Tensor, Tensor]:
        """Which samples the model misclassifies, and which are near the boundary for this ``unit``, both bool (n,)."""
        with guard(self.model, mode="eval", seed=narrow(seed)), full_precision(x.device):
            logits = ask(self.model, x)
        check_logits(logits, y)
        spread = (logits - logits.mean(1, keepdim=True)).abs().amax(1).minimum(2 * magnitude(logits))
        return logits.argmax(1) != y, margin(logits, y).abs() <= NEAR * unit * spread


def _check_passes(attack: Attack, most: int, out: Outcome) -> None:
    """Report, once, an attack of the user that uses more passes than it declares."""
    checked = owned(type(attack)) and attack.counts_passes and len(out.forwards)
    if checked and (used := int((out.forwards + out.backwards).max())) > most:
        _reporter(type(attack), most)(
            f"{type(attack).__name__} declares passes = {most} and uses {used} for a sample: set passes to the most"
            " forwards and backwards of one sample, by which attacks are ordered and time is estimated"
        )


@functools.cache
def _reporter(cls: type[Attack], most: int) -> Callable[[str], None]:
    return first_only(note)


def prepare(
    model: nn.Module, x: Tensor, *, search_dtype: SearchDtype | Auto | None = None, channels_last: bool | Auto = False,
    folding: bool = True,
) -> Search:  # fmt: skip
    """The search on ``model`` with inputs like ``x``; "auto" is measured here, on the network that is attacked.

    A network with batch norm that cannot be folded is attacked as it is, and one line reports the reason. ValueError as
    `Lowered`, and for an unknown memory format.
    """
    dtype, last = resolve(model, x, search_dtype=search_dtype, channels_last=channels_last, folding=folding)
    if dtype is not None:
        Lowered(model, dtype)  # refuses a model that cannot be lowered, even for no samples
    last = last and images_last(model, x)
    found = fold(model, x, channels_last=last) if folding else None
    if found is None or not found.layers:
        if found is not None and found.reason is not None:
            once(f"the network is searched with its batch norms, which cannot be folded: {found.reason}")
        return Search(model, model, dtype, last)
    return Search(model, found.network, dtype, last, found.layers)


def resolve(
    model: nn.Module, x: Tensor, *, search_dtype: SearchDtype | Auto | None, channels_last: bool | Auto = False,
    folding: bool = True,
) -> tuple[SearchDtype | None, bool]:  # fmt: skip
    """Precision and memory format of a search; for "auto" one line on stderr reports the measurement."""
    check_flag("folding", folding)
    if not isinstance(channels_last, bool) and channels_last != AUTO:
        raise ValueError(f'channels_last must be True, False or "auto", got {shown(channels_last)}')
    if AUTO not in (search_dtype, channels_last):
        return search_dtype, bool(channels_last)  # type: ignore[return-value]
    low = None if search_dtype == AUTO else (search_dtype or "float32",)
    network = fold(model, x).network if folding else model
    found = probe(network, x, precisions=low, formats=None if channels_last == AUTO else (bool(channels_last),))
    once(f"search  {found}")
    return found.search_dtype, found.channels_last


def settings_of(
    model: nn.Module, search_dtype: SearchDtype | Auto | None, channels_last: bool | Auto, folding: bool
) -> dict[str, Any]:
    """Settings on which the results of a search depend, for the file from which an evaluation resumes.

    Keys that earlier versions lack occur only where they have an effect.
    """
    made: dict[str, Any] = {"search_dtype": search_dtype, "channels_last": channels_last}
    if search_dtype is not None:
        made["near"] = NEAR
    return made | ({"folding": True} if folding and has_batch_norm(model) else {})
