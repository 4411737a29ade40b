"""Maps published weights to the names of a network: removes prefixes, translates layouts, selects the network."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from atent.messages import note
from atent.models import MODELS, build, native_shape
from atent.models.layouts import LAYOUTS
from atent.runs.weights import State, differences, visible

_WRAPPERS = ("module", "_orig_mod", "model", "_model", "network", "net", "backbone", "encoder", "base_model")
_COUNTERS = re.compile(r"(^|\.)(num_batches_tracked|total_ops|total_params|n_averaged)$")
_MEANS, _STDS = ("mean", "mu"), ("std", "sigma")
_OWN_MEAN, _OWN_STD = "normalize.mean", "normalize.std"


Pair = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, a number a channel."""


@dataclass(frozen=True)
class _Fit:
    """A network of the file whose entries are those of the model."""

    place: str
    state: State
    beside: tuple[str, ...]
    """Entries of the same state dict that are not of that network."""


def match(
    model: nn.Module, states: Mapping[str, State], path: Path, key: str | None = None, name: str | None = None
) -> State:
    """The state of the one network in a file that fits ``model``, in the model's names and with all its entries.

    Parameters
    ----------
    model
        The network, bare or behind its normalisation layer.
    states
        As `atent.runs.foreign.read_foreign` gives them.
    path
        For messages.
    key
        The place of the network in the file, where several fit.
    name
        The name of the network, for messages.

    Raises
    ------
    ValueError
        No network of the file fits, which names the first difference and the nearest network of this
        library; several fit; ``key`` is none of the places; or a tensor is of a kind that cannot be a weight.
    """
    own = visible(model)
    fits = [fit for place, state in states.items() for fit in _fits(own, place, state)]
    if key is not None:
        under = {place: state for place, state in states.items() if key in (place, "") or key.startswith(f"{place}.")}
        fits = [fit for fit in fits if fit.place == key]
        if not under and not fits:
            known = ", ".join(place or "(top)" for place in states)
            raise ValueError(f"{path} has no state dict at {key!r}: it has state dicts at {known}")
        states = under or states
    fits = _different(fits)
    if len(fits) > 1:
        raise ValueError(
            f"{path} holds {len(fits)} networks that fit, at {', '.join(fit.place or '(top)' for fit in fits)}: choose"
            " one by --key"
        )
    if not fits:
        raise ValueError(_misfit(own, states, path, name))
    (fit,) = fits
    _check_kinds(own, fit.state, path)
    if fit.beside:
        more = f" and {len(fit.beside) - 1} more" if len(fit.beside) > 1 else ""
        note(f"{path}: {fit.beside[0]}{more} beside the network at {fit.place!r} are ignored")
    return fit.state


def recorded(states: Mapping[str, State]) -> tuple[Pair | None, dict[str, State]]:
    """The mean and the standard deviation that the networks of a file have as buffers, and the states without them;
    None, and the states as they are, where there are none or they differ."""
    found = {place: _recorded(state) for place, state in states.items()}
    pairs = {pair for pair, _ in found.values() if pair is not None}
    if len(pairs) != 1:
        return None, dict(states)
    return pairs.pop(), {place: rest for place, (_, rest) in found.items()}


def _recorded(state: State) -> tuple[Pair | None, State]:
    """Mean and standard deviation among the entries, one number a channel each; and the other entries."""
    for name, mean in state.items():
        prefix, _, last = name.rpartition(".")
        if last not in _MEANS or not _is_row(mean):
            continue
        beside = f"{prefix}.{_STDS[_MEANS.index(last)]}" if prefix else _STDS[_MEANS.index(last)]
        std = state.get(beside)
        if std is not None and _is_row(std) and std.numel() == mean.numel() and bool((std > 0).all()):
            rest = {key: value for key, value in state.items() if key not in (name, beside)}
            return (_numbers(mean), _numbers(std)), rest
    return None, dict(state)


def _is_row(value: object) -> bool:
    """Whether a value is one finite number for each of a few channels."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and value.is_floating_point()
        and 1 <= value.numel() <= 16
        and value.numel() == max(value.shape, default=1)
        and bool(value.isfinite().all())
    )


def _numbers(value: Tensor) -> tuple[float, ...]:
    return tuple(value.flatten().tolist())


def _fits(own: State, place: str, state: State) -> Iterator[_Fit]:
    """The networks of one state dict that have all entries of ``own`` and no others: the dict as a whole, else its
    parts by prefix."""
    whole = _renamed(own, state)
    if whole is not None:
        yield _Fit(place, whole, ())
        return
    for form in _forms(state):
        heads = dict.fromkeys(name.partition(".")[0] for name in form if "." in name)
        if len(heads) < 2:
            continue
        found = []
        for head in heads:
            part = {name.removeprefix(f"{head}."): v for name, v in form.items() if name.startswith(f"{head}.")}
            named = _renamed(own, part)
            if named is not None:
                beside = tuple(name for name in form if not name.startswith(f"{head}.") and not _COUNTERS.search(name))
                found.append(_Fit(f"{place}.{head}".lstrip("."), named, beside))
        if found:
            yield from (found if len(found) == 1 else (_Fit(fit.place, fit.state, ()) for fit in found))
            return


def _renamed(own: State, state: State) -> State | None:
    """The state in the names of ``own``, completed by its counters and its normalisation; None if none fits."""
    for named in _candidates(own, state):
        if not differences(own, named):
            return named
    return None


def _candidates(own: State, state: State) -> Iterator[State]:
    """The state in every known layout, in the names of ``own`` where possible."""
    yield _completed(own, dict(state))
    prefix = "network." if all(name.startswith(("normalize.", "network.")) for name in own) else ""
    pair, rest = _recorded(state)
    if pair is not None and _OWN_MEAN not in own:
        rest = dict(state)
    given: State = {}
    if pair is not None and _OWN_MEAN in own:
        sides = (-1, *own[_OWN_MEAN].shape[1:])
        given = {name: torch.tensor(v).view(sides) for name, v in zip((_OWN_MEAN, _OWN_STD), pair, strict=True)}
    for form in _forms(rest):
        for named in (form, *(layout.apply(form) for layout in LAYOUTS)):
            if named is not None:
                yield _completed(own, given | {f"{prefix}{name}": value for name, value in named.items()})


def _completed(own: State, named: State) -> State:
    """Counters that the model lacks dropped, those that the file lacks and a normalisation that it lacks added."""
    kept = {name: value for name, value in named.items() if name in own or not _COUNTERS.search(name)}
    lacking = {name: value for name, value in own.items() if name not in kept}
    counters = {name: value for name, value in lacking.items() if _COUNTERS.search(name)}
    normal = {name: value for name, value in lacking.items() if name in (_OWN_MEAN, _OWN_STD)}
    return {**kept, **counters, **(normal if len(normal) == 2 else {})}


def _forms(state: State) -> Iterator[State]:
    """The state as it is, without the names of wrappers, and without what all names begin with."""
    form: State | None = dict(state)
    while form is not None:
        yield form
        bare = _unwrapped(form)
        if bare is not None and bare.keys() != form.keys():
            form = bare
            continue
        heads = {name.partition(".")[0] for name in form}
        nested = len(heads) == 1 and all("." in name for name in form)
        form = {name.partition(".")[2]: value for name, value in form.items()} if nested else None


def _unwrapped(state: State) -> State | None:
    """Names without those of wrappers, mixed or not; None if two entries would get one name."""
    bare: State = {}
    for name, value in state.items():
        parts = [part for part in name.split(".") if part not in ("module", "_orig_mod")]
        while len(parts) > 2 and parts[0] in _WRAPPERS:
            parts = parts[1:]
        short = ".".join(parts)
        if short in bare and bare[short] is not value:
            return None
        bare[short] = value
    return bare


def _different(fits: list[_Fit]) -> list[_Fit]:
    """The fits, of those with equal tensors the first."""
    kept: list[_Fit] = []
    for fit in fits:
        if not any(_equal(fit.state, other.state) for other in kept):
            kept.append(fit)
    return kept


def _equal(one: State, two: State) -> bool:
    def same(a: object, b: object) -> bool:
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return a is b
        strided = a.layout == b.layout == torch.strided and not (a.is_meta or b.is_meta)
        return a is b or (strided and a.dtype == b.dtype and bool(torch.equal(a, b)))

    return all(same(value, two[name]) for name, value in one.items())


def _check_kinds(own: State, state: State, path: Path) -> None:
    """Raise ValueError for a tensor that cannot be loaded into the model's."""
    for name, value in state.items():
        mine = own[name]
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor):
            continue
        kind, fix = None, ""
        if value.layout != torch.strided:
            kind, fix = f"a sparse tensor ({value.layout})", "save its to_dense()"
        elif value.is_meta:
            kind, fix = "on the meta device, without values", "save the network after its weights were loaded"
        elif value.is_quantized:
            kind, fix = "quantised", "save its dequantize()"
        elif value.is_floating_point() != mine.is_floating_point():
            kind, fix = f"{value.dtype}, the model's is {mine.dtype}", "save it in that type"
        if kind:
            raise ValueError(f"{path}: {name} is {kind}: {fix}")


# ---- what does not fit


def _misfit(own: State, states: Mapping[str, State], path: Path, name: str | None) -> str:
    """Why nothing in the file fits: the fewest differences, and the nearest network of this library."""
    found = [(len(lines), place, lines) for place, state in states.items() for lines in _lines(own, state)]
    count, place, lines = min(found, key=lambda item: item[0])
    # Shapes are more informative than names, and a name that differs only in case more than a missing one.
    first = next((line for line in lines if "has shape" in line), lines[0])
    more = f" and {count - 1} more" if count > 1 else ""
    where = f" (at {place})" if place and len(states) > 1 else ""
    than = f" than {name}" if name else ""
    classes = next(filter(None, (_classes(own, named) for named in _candidates(own, states[place]))), None)
    if classes:
        fix = (
            f"the file has {classes[0]} classes, the model has {classes[1]}: give data of {classes[0]} classes, or"
            " your own network as module:function that loads all layers of the file but the last"
        )
    return f"{path} has another architecture{than}{where}: {first}{more}; {fix if classes else nearest(states)}"


def _classes(own: State, state: State) -> tuple[int, int] | None:
    """The classes of a state and of the model where nothing but the last layer differs, else None."""
    odd = [(state[k].shape, own[k].shape) for k in own if k in state and state[k].shape != own[k].shape]
    if len(odd) > 2 or any(not a or not b or a[1:] != b[1:] for a, b in odd) or not set(own) <= set(state):
        return None
    pairs = {(a[0], b[0]) for a, b in odd}
    return pairs.pop() if len(pairs) == 1 else None


def _lines(own: State, state: State) -> Iterator[list[str]]:
    for named in _candidates(own, state):
        lines = differences(own, named)
        lower = {name.lower(): name for name in named}
        missing = [line.removesuffix(" is missing") for line in lines if line.endswith(" is missing")]
        case = [f"{name} is named {lower[name.lower()]}" for name in missing if name.lower() in lower]
        yield [*case, *lines]


def nearest(states: Mapping[str, State]) -> str:
    """Which network of this library a file's weights fit, or come nearest to, as the end of a message."""
    best, name = 0.0, ""
    shape: tuple[int, ...] = ()
    for other in MODELS:
        if not MODELS.is_built_in(other):
            continue
        for found, inputs in _shares(other, states):
            if found > best:
                best, name, shape = found, other, inputs
        if best == 1:
            size = "" if shape == native_shape(name) else f" for inputs {shape}"
            same = _namesakes(name, shape)
            fix = f"give --model {' or '.join([name, *same])}{', by the code that trained it' if same else ''}"
            return f"its tensors are those of {' and '.join([name, *same])}{size}: {fix}"
    if best < 0.5:
        return "no built-in network is similar: give your own as --model module:function"
    return f"nearest is {name}, with {best:.0%} of its tensors: give your own network as --model module:function"


def _namesakes(name: str, shape: tuple[int, ...]) -> list[str]:
    """The other built-in networks with the same tensors, which compute something else."""
    own = {key: value.shape for key, value in _bare(name, 10, shape).items()}
    others = [other for other in MODELS if other != name and MODELS.is_built_in(other)]
    found = []
    for other in others:
        try:
            theirs = _bare(other, 10, shape)
        except ValueError:
            continue
        if own == {key: value.shape for key, value in theirs.items()}:
            found.append(other)
    return found


def shape_of(name: str, states: Mapping[str, State]) -> tuple[int, ...]:
    """The shape of one input: of those that networks are usually built for the one that the weights fit best."""
    return max(_shares(name, states), key=lambda item: item[0], default=(0.0, native_shape(name)))[1]


def _shares(name: str, states: Mapping[str, State]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """How well the states of a file fit a network, for each of the usual shapes, its native one first; no more of them
    where one fits."""
    native = native_shape(name)
    sides = dict.fromkeys([native[1:], (28, 28), (32, 32)]) if len(native) == 3 else [()]
    for state in states.values():
        last = next((t for t in reversed(state.values()) if t.ndim == 2 and t.shape[0] >= 2), None)
        for side in sides:
            shape = (_channels(state) or native[0], *side)
            try:
                own = _bare(name, 10 if last is None else last.shape[0], shape)
            except ValueError:
                continue
            found = 0.0
            # Counters and wrappers change the number of entries little.
            if len(own) < 3 * len(state) and len(state) < 3 * len(own) + 10:
                found = max(_share(own, named) for named in _candidates(own, state))
            yield found, shape
            if found in (0.0, 1.0):
                break


def _share(own: State, named: State) -> float:
    """The share of the model's tensors that a state has with equal shapes, minus its additional ones."""
    common = sum(name in named and bool(named[name].shape == own[name].shape) for name in own)
    return common / max(len(own), len(named), 1)


def _channels(state: State) -> int | None:
    """The channels that the first convolution takes; None without one."""
    first = next((value for value in state.values() if value.ndim >= 2), None)
    return first.shape[1] if first is not None and first.ndim == 4 else None


def classes_of(name: str, shape: tuple[int, ...], states: Mapping[str, State]) -> int | None:
    """The number of classes of the weights of network ``name``; None if it cannot be determined."""
    two, three = (_bare(name, classes, shape) for classes in (2, 3))
    last = next((key for key in two if two[key].shape != three[key].shape), None)
    for state in states.values():
        for named in _candidates(two, state):
            value = named.get(last) if last else None
            if isinstance(value, Tensor) and value.ndim and set(two) <= set(named):
                return int(value.shape[0])
    return None


@functools.lru_cache(maxsize=256)
def _bare(name: str, classes: int, shape: tuple[int, ...]) -> State:
    """The entries of a built-in network, without values."""
    with torch.device("meta"):
        return visible(build(name, classes=classes, shape=shape))
