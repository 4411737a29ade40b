"""The state of a network: its tensors and extra state by name, and their conversion to and from files."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

State = dict[str, Any]
"""By name: a tensor, or what `get_extra_state` of a module returned."""
Notes = dict[str, Any]
"""What tensors alone do not say: names that are ``tied`` or ``complex``, ``extra`` state; plain JSON."""

_EXTRA = "_extra_state"
_COMPILED = "_orig_mod."


class Snapshot:
    """A snapshot of a network's state at the start of training, which determines what `load` needs to know; ``drawn``
    are buffers that a new network of the class has with other values, though they are not persistent."""

    def __init__(self, model: nn.Module, drawn: Collection[str] = ()) -> None:
        self.shapes = {k: _shape(v) for k, v in visible(model).items()}
        self.hidden = {k: v.detach().clone() for k, v in hidden(model).items() if k not in drawn}

    def own(self, model: nn.Module) -> list[str]:
        """Buffers that a new network of the class does not have in this form: added or resized since, or not persistent
        and drawn at random or changed."""
        aside, buffers = hidden(model), {plain_name(model, k) for k, _ in model.named_buffers()}
        grown = [k for k, v in visible(model).items() if k in buffers and self.shapes.get(k) != _shape(v)]
        changed = [k for k, v in aside.items() if k not in self.hidden or not same(self.hidden[k], v.detach())]
        return [*grown, *changed]


def plain_name(model: nn.Module, name: str) -> str:
    """A name in the state dict without the wrappers of `torch.compile` and of data-parallel modules."""
    kept, module = [], model
    for part in name.split("."):
        inner = _wrapped(module)
        if part != inner:
            kept.append(part)
        # The modules of a script are no dictionary.
        inside = module._modules[part] if part in module._modules else None  # noqa: SIM401
        module = nn.Module() if inside is None else inside
    return ".".join(kept)


def _wrapped(module: nn.Module) -> str | None:
    """The attribute under which a wrapper holds the network."""
    if "_orig_mod" in module._modules:
        return "_orig_mod"
    parallel = isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel)
    return "module" if parallel else None


def is_wrapper(module: nn.Module) -> bool:
    """Whether it is that of `torch.compile` or a data-parallel module around a network."""
    return _wrapped(module) is not None


def visible(model: nn.Module) -> State:
    """The state dict by plain names."""
    return {plain_name(model, k): v for k, v in model.state_dict().items()}


def fingerprint(model: nn.Module) -> str:
    """A hash of every weight and buffer: rows of different weights are never mixed."""
    digest = hashlib.sha256()
    for name, value in visible(model).items():
        digest.update(name.encode())
        if isinstance(value, Tensor) and not is_lazy(value):
            plain = value.dequantize() if value.is_quantized else value
            digest.update(plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()[:16]


def hidden(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not persistent, by plain names."""
    return {plain_name(model, full): buffer for full, _, _, buffer in _hidden(model)}


def _hidden(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    for prefix, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield f"{prefix}.{name}".lstrip("."), module, name, buffer


def whole(model: nn.Module, own: Collection[str]) -> State:
    """The state dict by plain names, with those buffers that are not persistent and in ``own``."""
    return visible(model) | {k: v for k, v in hidden(model).items() if k in own}


def copied(model: nn.Module) -> State:
    """All of a network's state, apart from its further life."""
    state = whole(model, hidden(model))
    return {k: v.detach().clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in state.items()}


def put(model: nn.Module, state: Mapping[str, Any], own: Collection[str] = ()) -> None:
    """Load a state by plain names into a network that may be wrapped; buffers named in ``own`` are made to fit.

    ValueError if the state is another architecture's.
    """
    given = {k.replace(_COMPILED, ""): v for k, v in state.items()}
    aside = hidden(model)
    for name in own:
        _adopt(model, name, given[name], persistent=name not in aside)
    for name, buffer in hidden(model).items():
        value = given.pop(name, None)
        if value is not None and name not in own:
            buffer.data.copy_(value)
    names = {plain_name(model, k): k for k in model.state_dict()}
    try:
        model.load_state_dict({names.get(k, k): v for k, v in given.items()})
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the saved state does not load into this network: {reason}") from error


def _adopt(model: nn.Module, name: str, value: Tensor, *, persistent: bool) -> None:
    """Give the module of a buffer the saved tensor itself."""
    *path, last = name.split(".")
    module = unwrapped(model)
    for part in path:
        inner = module._modules.get(part)
        if inner is None:
            raise ValueError(f"the saved state has a buffer {name}, this network no {'.'.join(path)}")
        module = unwrapped(inner)
    if last in module._parameters:
        raise ValueError(f"the saved state has a buffer {name}, this network a parameter of that name")
    like = next((t for t in (*module.buffers(), *model.parameters())), value)
    if last not in module._buffers:
        module.__dict__.pop(last, None)
        module.register_buffer(last, None, persistent=persistent)
    module._buffers[last] = value.detach().to(like.device, copy=True)


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside `torch.compile` or a data-parallel module."""
    while (inner := _wrapped(module)) is not None:
        module = module._modules[inner]  # type: ignore[assignment]
    return module


def differences(model: State, state: State, own: Collection[str] = ()) -> list[str]:
    """The mismatches between a state and a network (whose `visible` state is ``model``), one line each."""
    missing = [f"{k} is missing" for k in model if k not in state]
    strange = [f"{k} is not in the model" for k in state if k not in model and k not in own]
    shared = [k for k in model if k in state and k not in own]
    plain = [k for k in shared if isinstance(model[k], Tensor) and not is_lazy(model[k])]
    odd = [
        f"{k} has shape {_shape(state[k])}, the model {_shape(model[k])}"
        for k in plain
        if not k.endswith(_EXTRA) and _shape(state[k]) != _shape(model[k])
    ]
    tied: dict[tuple[Any, ...], str] = {}
    for k in plain:
        if k.endswith(_EXTRA) or _shape(state[k]) != _shape(model[k]):
            continue
        if state[k].is_complex() != model[k].is_complex():
            odd.append(f"{k} is {state[k].dtype}, the model {model[k].dtype}")
        first = tied.setdefault(_place(model[k]), k) if model[k].numel() and not model[k].is_meta else k
        if first != k and not same(state[first], state[k]):
            odd.append(f"{first} and {k} differ, and are one in the model")
    return [*missing, *strange, *odd]


def fitted(model: State, state: State) -> State:
    """The state with each tensor in the type of the model's."""

    def like(name: str, value: Any) -> Any:
        mine = model.get(name)
        if not isinstance(mine, Tensor) or not isinstance(value, Tensor) or name.endswith(_EXTRA) or is_lazy(mine):
            return value
        return value.to(mine.dtype)

    return {k: like(k, v) for k, v in state.items()}


def translated(model: nn.Module, state: Mapping[str, Any]) -> State:
    """A state in the names of ``model``, where the class of a network inside it knows the names that it has.

    Such a class has a method ``published_state(state)`` that gives the state in its own names, or None for one that is
    not of a layout that it knows. What lies outside that network, such as the layer that normalises, stays as it is in
    ``model``. Any other state is returned unchanged.
    """
    for path, module in model.named_modules():
        translate = getattr(module, "published_state", None)
        renamed = translate(state) if callable(translate) else None
        if renamed is not None:
            name = plain_name(model, path) if path else ""
            prefix = f"{name}." if name else ""
            around = {k: v for k, v in visible(model).items() if not k.startswith(prefix)}
            return {**around, **{prefix + k: v for k, v in renamed.items()}}
    return dict(state)


# ---- for files -----------------------------------------------------------------------------------------------------


def pack(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], Notes]:
    """Tensors without shared memory on the CPU, and `Notes`; ``unpack`` gives the state back.

    A tensor that goes by several names is kept once. ValueError for what a file of tensors and JSON
    cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    extra: dict[str, Any] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            extra[name] = _json(name, value)
            continue
        _check(name, value)
        place = _place(value)
        if value.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        plain = value.detach()
        plain = (torch.view_as_real(plain.resolve_conj()) if plain.is_complex() else plain).cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        tensors[name] = plain
    complex_names = [k for k in tensors if state[k].is_complex()]
    notes = {"tied": tied, "extra": extra, "complex": complex_names}
    return tensors, {k: v for k, v in notes.items() if v}


def unpack(tensors: Mapping[str, Tensor], notes: Notes) -> State:
    """The state that `pack` was given; tied names share a tensor."""
    state: State = {k.replace(_COMPILED, ""): v for k, v in tensors.items()}
    for name in notes.get("complex", ()):
        # A file's tensors lie at multiples of 8 bytes; complex128 needs 16, or the process dies in the copy.
        pairs = state[name]
        if pairs.shape[-1:] != (2,) or pairs.dtype not in (torch.float16, torch.float32, torch.float64):
            raise ValueError(f"{name} is {pairs.dtype} {tuple(pairs.shape)}, want pairs of floats: it is complex")
        state[name] = torch.view_as_complex(pairs.clone())
    for name, of in notes.get("tied", {}).items():
        state[name] = state[of]
    return {**state, **notes.get("extra", {})}


def aliases(model: nn.Module) -> list[frozenset[str]]:
    """The groups of parameters and buffers whose ranges of memory overlap, by name."""
    ranges = []
    for name, t in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        if not is_lazy(t) and t.layout == torch.strided and not t.is_quantized and t.numel() and not t.is_meta:
            last = sum((n - 1) * s for n, s in zip(t.shape, t.stride()))
            ranges.append((t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size(), name))
    groups: list[set[str]] = []
    end = 0
    for begin, stop, name in sorted(ranges):
        if begin < end:
            groups[-1].add(name)
        else:
            groups.append({name})
        end = max(end, stop)
    return [frozenset(names) for names in groups if len(names) > 1]


def _place(value: Tensor) -> tuple[Any, ...]:
    return value.device, value.data_ptr(), value.shape, value.stride(), value.dtype


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) and not is_lazy(value) else None


def is_dense(value: Tensor) -> bool:
    """Whether a weights file can hold a tensor."""
    plain = not is_lazy(value) and not value.is_meta and not value.is_quantized
    return plain and value.layout == torch.strided


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree, NaN with NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a is b
    if a.is_quantized or a.layout != torch.strided:
        a, b = (t.dequantize() if t.is_quantized else t.to_dense() for t in (a, b))
    return bool(((a == b) | ((a != a) & (b != b))).all())


def _check(name: str, value: Tensor) -> None:
    """ValueError for tensors that have no plain values in memory."""
    kind = None
    if is_lazy(value):
        kind, fix = "not initialised", "give its size, or remove it"
    elif value.is_meta:
        kind, fix = "on the meta device, without values", "build the network on a real one"
    elif value.is_quantized:
        kind, fix = "quantised", "keep its integers and scales in plain buffers, or register it with persistent=False"
    elif value.layout != torch.strided:
        kind, fix = f"{value.layout}", "keep it dense, or register it with persistent=False and make it in __init__"
    if kind:
        raise ValueError(f"{name} is {kind}, which a weights file cannot hold: {fix}")


def _json(name: str, value: Any) -> Any:
    """Return ``value`` if it is plain JSON that survives a round trip; else raise ValueError."""

    def plain(item: Any) -> bool:
        if type(item) is list:
            return all(map(plain, item))
        if type(item) is dict:
            return all(type(k) is str for k in item) and all(map(plain, item.values()))
        return item is None or type(item) in (bool, int, str) or (type(item) is float and abs(item) < float("inf"))

    if not name.endswith(_EXTRA):
        raise ValueError(f"{name} of the state dict is a {type(value).__name__}, want a tensor")
    if not plain(value):
        raise ValueError(
            f"{name} is a {type(value).__name__} that a run folder cannot hold: return a tensor or plain JSON (finite"
            " numbers, strings, lists, dicts with string keys) from get_extra_state, or train without a run folder"
        )
    return value
