"""From a pre-training run to a network that is fine-tuned: the encoder's weights, with one set of batch-norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from atent.models.contrastive import Contrastive, Frozen, last_linear
from atent.models.dual import Branch, of_branch
from atent.runs.checkpoint import check_architecture, load_weights, read_weights, weights_file
from atent.runs.foreign import is_safetensors
from atent.runs.weights import State, fitted, put, visible

_ENCODER = "network."


def load_start(
    model: nn.Module, path: str | Path, branch: Branch | None = None, *, which: str = "best"
) -> dict[str, Any]:
    """Load initial weights into a network.

    Parameters
    ----------
    model
        The network, which may be `Frozen`.
    path
        A run folder or a weights file. Of a pre-training run (see `Contrastive`) an ordinary network of the same name
        takes the encoder, with the batch-norms of one branch; the projection head and the probe are discarded, and the
        last layer starts at zero. All else is `load_weights`.
    branch
        Which batch-norms of a pre-training run, "n" or "a"; default: those that it was evaluated with, of a run from
        Python "a" where they were trained.
    which
        As `load_weights`.

    Returns
    -------
    dict
        The metadata of the file; {} if it has none.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_weights`, for a branch where the weights have one set of batch-norms, and for one that the
        pre-training did not train.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from atent.runs.pretrained import load_start
    >>> source, network = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(source.state_dict(), Path(folder) / "weights.pt")
    ...     _ = load_start(network, Path(folder) / "weights.pt")
    >>> torch.equal(network.weight, source.weight)
    True
    """
    if isinstance(model, Frozen):
        return load_start(model.network, path, branch, which=which)
    file = weights_file(Path(path), which)
    # No other library's file is of a pre-training run.
    about, state, notes = read_weights(file) if is_safetensors(file) else ({}, {}, {})
    if isinstance(model, Contrastive):
        return load_weights(model, file)
    if not ("probe.weight" in state and any(name.startswith("projection.") for name in state)):
        if branch is not None:
            raise ValueError(
                f"model.branch {branch} is for weights of a pre-training run, and {path} has one set of batch-norms:"
                " omit it"
            )
        return load_weights(model, file)
    chosen = _branch(state, branch, (about.get("model") or {}).get("branch"), path)
    last = last_linear(model, tuple(about["shape"]))
    own = visible(model)
    head = {name: torch.zeros_like(own[name]) for name in own if name.rpartition(".")[0] == last}
    encoder = _encoder(state, chosen) | head
    kept = [*_encoder(dict.fromkeys(notes.get("own", ())), chosen)]
    check_architecture(model, encoder, file, about, kept)
    put(model, fitted(own, encoder), kept)
    return about


def _branch(state: State, asked: Branch | None, own: Branch | None, path: str | Path) -> Branch:
    """The branch to take; ValueError for one that has seen no batch."""
    seen: dict[Branch, int] = {
        which: sum(int(v) for k, v in state.items() if k.endswith(f"branch_{which}.num_batches_tracked"))
        for which in ("n", "a")
    }
    found: Branch = asked or own or ("a" if seen["a"] else "n")
    if not seen[found]:
        other = "n" if found == "a" else "a"
        raise ValueError(f"the batch-norms of branch {found} were not trained in {path}: use model.branch {other}")
    return found


def _encoder(state: State, branch: Branch) -> State:
    """The encoder's entries by the names of the ordinary network."""
    named = {of_branch(k.removeprefix(_ENCODER), branch): v for k, v in state.items() if k.startswith(_ENCODER)}
    return {name: value for name, value in named.items() if name is not None}
