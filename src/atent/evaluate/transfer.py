"""Transfer of adversarial images between networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import as_attack
from atent.checks import as_samples
from atent.contracts import kind_of
from atent.docstrings import Documented
from atent.evaluate.answers import predict
from atent.evaluate.lines import Values
from atent.evaluate.samples import Checked, checked
from atent.evaluate.search import Search, prepare, resolve, settings_of
from atent.evaluate.study import study
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import Advance


@dataclass(frozen=True, eq=False)
class Transfers(metaclass=Documented):
    """Which samples remain correctly classified by each network under the attack on each; on the CPU.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import measure_transfer
    >>> models = {name: torch.nn.Linear(4, 3) for name in ("a", "b")}
    >>> x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> found = measure_transfer(models, x, y, FGSM(Threat("linf", 0.1)))
    >>> bool((found.robust <= found.right).all()), found.names
    (True, ('a', 'b'))
    """

    names: tuple[str, ...]
    """The networks."""
    right: Tensor
    """Whether each network classifies each sample correctly without an attack; bool (networks, n)."""
    robust: Tensor
    """``robust[i, j]`` for the network j under the attack on the network i; bool (networks, networks, n)."""


def measure_transfer(
    models: Mapping[str, nn.Module],
    x: Tensor | Checked,
    y: Tensor | None,
    attack: Attack,
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: str | Path | None = None,
    search_dtype: SearchDtype | Auto | None = None,
    folding: bool = True,
    advance: Advance | None = None,
) -> Transfers:
    """Attack every sample on each network, and evaluate all networks on the result.

    The same attack with the same random numbers is run on each network; the diagonal is the white-box attack. A sample
    that a network misclassifies without an attack is not robust on it, whatever the result of the attack.

    Parameters
    ----------
    models
        Two networks or more, by name; each is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) in the attack's box and true labels (n,), or `Checked` samples and None; n is 2 or more.
    attack
        The attack on each source.
    seed, ids, batch
        As in `evaluate`.
    resume
        JSON-lines file from which the same call resumes after an interruption.
    search_dtype, folding
        As in `evaluate`; "auto" is measured on the first network, for all of them.
    advance
        Called with n samples for each network, and a string.

    Returns
    -------
    Transfers
        Which samples are robust, by source and target.

    Raises
    ------
    ValueError
        In one line, for fewer than two networks, and as `evaluate`.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import measure_transfer
    >>> models = {name: torch.nn.Linear(4, 3) for name in ("a", "b")}
    >>> x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> measure_transfer(models, x, y, FGSM(Threat("linf", 0.1))).robust.shape
    torch.Size([2, 2, 6])
    """
    if not isinstance(models, Mapping):
        raise ValueError(f'models must be networks by name, got {kind_of(models)}: write {{"a": one, "b": other}}')
    attack = as_attack(attack)
    if len(models) < 2:
        raise ValueError(f"a transfer matrix needs two networks or more, got {len(models)}")
    first = next(iter(models.values()))
    if search_dtype == "auto":
        search_dtype, _ = resolve(first, checked(first, x, y, ids, {attack.threat.box}).x, search_dtype=search_dtype)
    settings = transfer_settings(models, search_dtype, folding)
    s = study(
        "transfer matrix", first, x, y, box=attack.threat.box, seed=seed, ids=ids, batch=batch, resume=resume,
        advance=advance, attacks={"attack": attack}, models=models, images=False, **settings,
    )  # fmt: skip
    attack.threat.check_eps(s.x.shape[1:])
    attack.threat.check_samples(s.n)
    right = torch.stack([(predict(net, s.x, s.y, batch=s.batch, seed=s.seed) == s.y).cpu() for net in models.values()])
    robust = torch.zeros(len(models), len(models), s.n, dtype=torch.bool)
    for i, (name, source) in enumerate(models.items()):
        # Each network may be on a device of its own.
        own = as_samples(s.x, s.y, source)
        search = prepare(source, own[0], search_dtype=search_dtype, folding=folding)
        for key, at in s.batches():

            def row(at: Tensor = at, search: Search = search, own: tuple[Tensor, Tensor] = own) -> dict[str, object]:
                x, y = (t[at.to(t.device)] for t in own)
                x_adv = search.attacked(attack.of(at), x, y, seed=s.seed, ids=s.ids[at]).x_adv.to(s.x.device)
                return {"wrong": [s.wrong(net, x_adv, at) for net in models.values()]}

            found = s.notes.of(f"{i} {key}", row, {"wrong": Values("bit", (len(models), len(at)))})
            robust[i][:, at.cpu()] = ~torch.tensor(found["wrong"], dtype=torch.bool)
            s.step(len(at), f"{name} {100 * float(robust[i, i].double().mean()):.1f} %")
    return Transfers(tuple(models), right, robust & right[None])


def transfer_settings(
    models: Mapping[str, nn.Module], search_dtype: SearchDtype | None = None, folding: bool = True
) -> dict[str, object]:
    """Settings on which a matrix depends, for its file; of two networks empty where attacks search on them."""
    # The rows are in the order of the networks; the first of two is the model of the file.
    found: dict[str, object] = {"order": list(models)} if len(models) > 2 else {}
    for model in models.values():
        found |= settings_of(model, search_dtype, False, folding)
    return {k: v for k, v in found.items() if v}
