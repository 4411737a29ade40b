"""Which results of a network's code share their memory, and changes in place of what is read again."""

from __future__ import annotations

from torch import fx, nn

from atent.certify.arguments import Constant, Found
from atent.certify.names import DROPOUTS, VIEWS, named
from atent.certify.tracing import AUGMENTED

Shared = dict[fx.Node, list[fx.Node]]
"""The steps that share memory with each step: an in-place change of one changes all."""

# In eval mode dropout returns its input.
_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)


def in_place(step: fx.Node, root: nn.Module) -> bool:
    """Whether the step writes its result into its input."""
    if step.op == "call_module":
        return bool(getattr(root.get_submodule(str(step.target)), "inplace", False))
    target = step.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name.endswith("_") or name in AUGMENTED or bool(step.kwargs.get("inplace", False))


def alone(step: fx.Node, root: nn.Module) -> bool:
    """Whether the step is a statement that changes its input in place, as ``x.relu_()``: later code reads the input.

    Not so for a change of the shape: the trace takes ``x.shape`` and ``x.mT`` where they are used, perhaps after it.
    """
    if not in_place(step, root) or step.users or not step.all_input_nodes:
        return False
    return step.op == "call_module" or named(step)[1] not in VIEWS or named(step)[1] in DROPOUTS


def share(step: fx.Node, root: nn.Module, shared: Shared) -> None:
    """Note the steps so far whose results may share their memory with this one's, itself among them."""
    if step.op == "call_module":
        view = isinstance(root.get_submodule(str(step.target)), _VIEWS)
    else:
        view = step.op in ("call_function", "call_method") and named(step)[1] in VIEWS
    sources = step.all_input_nodes[:1] if view or in_place(step, root) else []
    group = shared[sources[0]] if sources else []
    group.append(step)
    shared[step] = group


def refuse_change(step: fx.Node, name: str, root: nn.Module, found: Found, shared: Shared) -> None:
    """ValueError where the step changes memory in place that is read again: another result's, or a weight's."""
    sources = step.all_input_nodes[:1] if in_place(step, root) else []
    if sources and isinstance(found[sources[0]], Constant):
        raise ValueError(f"{name} changes a weight or a buffer in place in the forward pass: bounds need fixed weights")
    # The change itself, and its input where the code goes on with that, are read in place of the former values.
    known = [step, *(sources if alone(step, root) else [])]
    others = [node for source in sources for node in shared[source] if node not in known]
    # Entries may be read after they are written. The same value twice, as of a dropout, is read entry by entry.
    if any(node in others and found[node] != found[sources[0]] for node in step.all_input_nodes[1:]):
        raise ValueError(f"{name} changes in place what it also reads as another slice or view: use x = x + y")
    if any(user > step for node in others for user in node.users):
        raise ValueError(f"{name} changes in place what the network reads again later: use inplace=False")
