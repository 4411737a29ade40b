"""Checks before the first step of a training for later errors: each is reported in one line, and nothing is written.

All checks use a copy of the network, so that the start of the training does not change.
"""

from __future__ import annotations

import copy
import io
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atent import runs as folder
from atent.attacks import Attack
from atent.contracts import decimal, owned
from atent.data import Data, augment
from atent.data.augmentation import Augmentation
from atent.data.augmentation import check as check_augmentation
from atent.guard import ask, guard, wrapping
from atent.losses import cross_entropy
from atent.methods import METHODS, Method
from atent.methods.contract import checked_state, lacking
from atent.runs.answers import differ
from atent.runs.weights import Snapshot, aliases, pack, put, unpack, whole
from atent.threat import Box, Threat
from atent.train.settings import TrainSettings

_CHANNELS = 8
"""Channels of a box that an error writes out."""


def check(
    model: nn.Module, data: Data, method: Method, state: Any, attacks: Mapping[str, Attack], begun: Snapshot,
    run: Path | None, amp: AbstractContextManager[Any], settings: TrainSettings,
) -> bool:  # fmt: skip
    """ValueError for later errors of the training; returns whether a last batch of one image joins the previous one."""
    check_attacks(model, data, attacks)
    made = twin(model)
    x, _ = data.train.batch(torch.arange(min(2, len(data.train)), device=data.train.x.device))
    if made is not None and len(x) > 1:
        with amp:
            check_pass(made, x, data.classes)
        check_kept(model, made, begun, x)
    if run is not None:
        check_folder(run)
        check_files(model if made is None else made, begun, state)
    step = gradient_of(method, data, state, amp, model)
    return last_joins(data.epoch, settings.batch_size, settings.accumulate, step)


def check_threat(threat: Threat | None, data: Data) -> None:
    """ValueError for a threat with a box other than the data's, or an eps that the data do not allow."""
    if threat is None:
        return
    if threat.box != Threat("linf", 0.0, data.box).box:
        raise ValueError(
            f"the threat's box is {_words(threat.box)}, the data's {_words(data.box)}: give the threat box=data.box, or"
            " on the command line --method.threat.box with these numbers"
        )
    threat.check_eps(data.shape)


def augmentation(name: str, data: Data) -> Augmentation:
    """The augmentation of that name; ValueError for an unknown one, and where the data do not allow it."""
    made = augment(name)
    check_augmentation(name, data.shape, data.box, data.name)
    return made


def _words(box: Box) -> str:
    """A box as the command line takes it, or the number of its channels where these are many."""
    low, high = box
    if not isinstance(low, tuple) or not isinstance(high, tuple):
        return f"{decimal(low)} {decimal(high)}"
    if len(low) > _CHANNELS:
        return f"one of {len(low)} channels"
    comma = "," if len(low) == 1 else ""
    return " ".join(",".join(map(decimal, side)) + comma for side in (low, high))


def move(model: nn.Module, device: torch.device, layout: torch.memory_format) -> None:
    """Move the network to the device; ValueError if that is impossible, or would separate weights that share memory."""
    values = [*model.named_parameters(), *model.named_buffers()]
    lost = next((k for k, v in values if v.is_meta and device.type != "meta"), None)
    if lost:
        raise ValueError(f"the network's {lost} is on the meta device, without values: build it on another device")
    before = aliases(model)
    model.to(device)
    if layout is torch.channels_last:
        model.to(memory_format=layout)  # type: ignore[call-overload]
    after = {name: group for group in aliases(model) for name in group}
    for group in before:
        parted = sorted(name for name in group if not group <= after.get(name, frozenset()))
        if parted:
            raise ValueError(
                f"{parted[0]} and {parted[1]} share memory, which the move to {device.type} or channels_last would"
                " break: tie the Parameter itself (b.weight = a.weight)"
            )


def begin(method: Method, data: Data, device: torch.device, *, resume: bool) -> Any:
    """The method's initial state; ValueError in one line if its ``init`` or ``prepare`` fails.

    A resumed training has the result of ``prepare`` in its checkpoint.
    """
    n, shape, name = len(data.train), data.shape, type(method).__name__
    if owned(type(method)) and (line := lacking(type(method), Method)) is not None:
        raise ValueError(f"{line} (see {METHODS.page})")
    try:
        state = checked_state(f"{name}.init", method.init(n, shape, device))
        if not resume:
            state = {**state, **checked_state(f"{name}.prepare", method.prepare(data))}
        return state
    except Exception as error:
        text = " ".join(str(error).split()) if isinstance(error, ValueError | OSError) else _line(error)
        raise ValueError(f"{name} cannot start on {n} images of shape {shape}: {text}") from error


def check_views(model: nn.Module) -> None:
    """ValueError for weights and buffers that cannot be written to."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        known = not is_lazy(value) and value.layout == torch.strided
        if known and any(n > 1 and s == 0 for n, s in zip(value.shape, value.stride())):
            raise ValueError(f"the network's {name} is an expanded view, which cannot be written to: use .clone()")


def check_lazy(model: nn.Module) -> None:
    """ValueError for lazy weights that a forward pass has not initialised."""
    name = next((k for k, v in [*model.named_parameters(), *model.named_buffers()] if is_lazy(v)), None)
    if name is not None:
        raise ValueError(f"the network's {name} is not initialised after a forward pass: give its size, or remove it")


def twin(model: nn.Module) -> nn.Module | None:
    """A copy of a network for checks; None if it cannot be copied."""
    try:
        with random_state():
            return copy.deepcopy(model)
    except Exception:  # a custom __deepcopy__ may raise any error, and a network without a copy can still train
        return None


def check_kept(model: nn.Module, made: nn.Module, begun: Snapshot, x: Tensor) -> None:
    """ValueError if a pass in train mode, which ``made``, a copy of ``model``, has done, changed what no file keeps."""
    new, own = twin(model), begun.own(made)
    if new is None:
        return
    put(new, whole(made, own), own)
    if differ(made, new, x):
        raise ValueError(
            "the network changes attributes in train mode that are neither parameters nor buffers and on which its"
            " outputs depend, so that no file could keep it: register them by register_buffer, or return them from"
            " get_extra_state"
        )


def check_pass(model: nn.Module, x: Tensor, classes: int) -> None:
    """One pass of a copy in train mode; ValueError if it fails, or adds parameters that the optimizer would not
    have."""
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), x.dtype)
    if own != x.dtype:
        raise ValueError(f"the network is {own} and the data {x.dtype}: convert it to {x.dtype} by model.float()")
    before = {k: id(p) for k, p in model.named_parameters()}
    try:
        with random_state(), torch.no_grad():
            model.train()  # a network's own train() may return nothing
            out = model(x.clone())
    except Exception as error:
        raise ValueError(f"the network cannot take {len(x)} training images: {_line(error)}") from error
    if not isinstance(out, Tensor) or out.shape != (len(x), classes):
        seen = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ValueError(
            f"the network must return logits of shape {(len(x), classes)} in train mode, got {seen}{wrapping(out)}"
        )
    new = next((k for k, p in model.named_parameters() if before.get(k) != id(p)), None)
    if new:
        raise ValueError(f"the network adds its parameter {new} in a forward pass, after the optimizer: add it before")


def check_files(model: nn.Module, start: Snapshot, state: Any) -> None:
    """Pack a copy's weights and the method's ``state`` as at the end of an epoch, and load them again; ValueError if a
    run folder cannot store them."""
    own = start.own(model)
    tensors, notes = pack(whole(model, own))
    first = {k: v.flatten()[:1].clone() for k, v in tensors.items()}  # only types matter here
    try:
        from safetensors.torch import save

        save(first)
    except Exception as error:
        raise ValueError(f"the network's weights cannot be stored in a safetensors file ({_line(error)})") from error
    put(model, unpack(tensors, notes), own)
    try:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    except Exception as error:
        raise ValueError(
            f"the method's state cannot be restored from a file ({_line(error)}): use tensors only"
        ) from error


def check_folder(path: Path) -> None:
    """OSError for an existing run folder that cannot be written to."""
    for place in (path, path / folder.LAST):
        if place.is_dir():
            try:
                tempfile.TemporaryFile(dir=place).close()
            except OSError as error:
                raise OSError(f"cannot write to {place}: {error.strerror or error}") from error


def last_joins(n: int, batch_size: int, parts: int, step: Callable[[int], None]) -> bool:
    """Whether a last batch of one image must join the previous batch: a step on one image fails, and on two succeeds.

    Batch-norm on one value per channel has no variance, and a network that squeezes loses its batch dimension.
    ValueError if such a network has no other batch, or if a batch in ``parts`` micro-batches has single images.
    """
    singles = parts > 1 and batch_size < 2 * parts
    if batch_size > 1 and n % batch_size != 1 and not singles:
        return False
    try:
        step(1)
    except Exception as error:
        if n > 1:
            try:
                step(2)
            except Exception:  # not caused by the number of images: the first step reports it
                return False
        if n == 1 or batch_size == 1 or singles:
            fix = "give more training images" if n == 1 else "use batch_size 2 or more"
            if n > 1 and batch_size > 1:
                fix = f"train.accumulate {parts} divides the {batch_size} of a batch, use at most {batch_size // 2}"
            raise ValueError(f"the network cannot train on a batch of one image ({_line(error)}): {fix}") from error
        return True
    return False


def check_attacks(model: nn.Module, data: Data, attacks: Mapping[str, Attack]) -> None:
    """The first passes of each attack and its parts on two validation images; ValueError if one fails."""
    some = data.validation.first(2)
    x, y = some.batch(torch.arange(len(some), device=some.x.device))
    for name, attack in attacks.items():
        for part in attack.parts() or (None,):
            try:
                attack.run(_Brief(model), x, y, part=part)
            except _Enough:
                pass  # the limit of passes was reached
            except Exception as error:
                text = " ".join(str(error).split()) if isinstance(error, ValueError) else _line(error)
                raise ValueError(f"{name} cannot run here: {text}") from error


class _Enough(Exception):
    """The limit of passes is reached."""


class _Brief(nn.Module):
    """A network that allows three forward passes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.left = model, 3

    def forward(self, x: Tensor) -> Tensor:
        if not self.left:
            raise _Enough
        self.left -= 1
        answer: Tensor = self.model(x)
        return answer


@contextmanager
def random_state() -> Iterator[None]:
    """Restore all global random states on exit."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with guard(nn.Module()), torch.random.fork_rng(devices=cuda):
        yield


def gradient_of(
    method: Method, data: Data, state: Any, amp: AbstractContextManager[Any], model: nn.Module
) -> Callable[[int], None]:
    """A step of ``method`` on the first n training images, with copies of the network and of the method's state; only
    the forward pass for a network that cannot be copied."""

    def step(n: int) -> None:
        index = torch.arange(n, device=data.train.x.device)
        x, y = data.train.batch(index)
        made = twin(model)
        with random_state(), amp:
            if made is not None:
                rng = torch.Generator(x.device).manual_seed(0)
                made.train()
                method.backward(made, x, y, rng=rng, ids=index, state=copy.deepcopy(state))
                return
            with guard(model, mode="train"), torch.no_grad():
                cross_entropy(ask(model, x), y)

    return step


def _line(error: BaseException) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]])
