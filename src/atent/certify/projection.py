"""Margins with l1 norms from random projections, for training: estimates, not bounds (Wong et al. 2018)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from atent.certify import interval
from atent.certify.affine import plain
from atent.certify.bounds import CHUNK, differences, prepare
from atent.certify.graph import Graph
from atent.certify.interval import INEXACT, Box
from atent.certify.linear import Relaxation, relax
from atent.certify.region import Region
from atent.distributed import undivided
from atent.precision import full_precision
from atent.threat import Threat


def estimated_margins(
    model: nn.Module | Graph, x: Tensor, y: Tensor, threat: Threat, projections: int, rng: torch.Generator
) -> Tensor:
    """An estimate of `margins` by the method dual, (n, classes), for ``projections`` + 1 forward passes of the batch.

    In the dual network each ReLU is the line s z + s |l| / 2 with an error of at most s |l| / 2, so a value lies within
    c +- |g|_1, where c is the value at the centre and g its gradient with respect to the input's and the ReLUs' errors.
    The l1 norms of hidden layers are estimated by the median of |<g, r>| over vectors r of standard Cauchy samples,
    which pass through the network together with c (Wong et al. 2018, "Scaling provable adversarial defenses"). The
    vectors are shared by the batch. The first layer is exact, and the margins are exact for the relaxations of the
    hidden layers. Deviations from the authors' code: one projection of all terms of g, where theirs estimates the norm
    of each layer's terms by a projection of its own; the first layer is exact, where theirs estimates it too; all terms
    are projected, where theirs are exact for an input of at most k values, and for a layer of which at most k ReLUs are
    undecided, summed over the batch; where the ball is cut to the box, theirs projects the lower and the upper ends of
    the region separately.

    linf only. Not sound: an estimate may be too small. Differentiable in the weights, without host syncs and without
    checks of the data. ValueError for another norm, for a network with max-pooling, smooth activations or
    concatenations, and as `margins`.
    """
    if threat.norm != "linf":
        raise ValueError(f"Cauchy projections estimate the dual norms of linf, got {threat.norm}: omit projections")
    graph, place = prepare(model, x, y, threat, "dual", CHUNK, check=False, rounding=False)
    with full_precision(x.device):
        boxes, relaxations = hidden(graph, place, projections, rng)
        return differences(graph, y, place, "dual", boxes, relaxations)


def hidden(
    graph: Graph, place: Region, projections: int, rng: torch.Generator
) -> tuple[list[Box], dict[int, Relaxation]]:
    """The boxes and relaxations of all nodes, by their centres (n, ...) and projections (n, projections, ...)."""
    boxes: list[Box] = []
    relaxations: dict[int, Relaxation] = {}
    centres: list[Tensor] = []
    projected_errors: list[Tensor] = []

    def projected(error: Tensor) -> Tensor:
        cauchy = torch.empty(projections, *error.shape[1:], dtype=error.dtype, device=error.device)
        with undivided():  # one vector for all samples
            return cauchy.cauchy_(generator=rng) * error[:, None]

    for number, node in enumerate(graph.nodes):
        source = node.inputs[0] if node.inputs else 0
        if node.kind == "input":
            boxes.append(interval.start(place))
            centres.append((place.upper + place.lower) / 2)
            projected_errors.append(projected((place.upper - place.lower) / 2))
            continue
        if node.kind in ("maxpool", "smooth", "cat"):
            raise ValueError(f"projections need a network of ReLUs alone, got {node.name}: omit projections")
        if node.kind == "affine":
            centre = node.op.apply(centres[source], plain)
            offset = node.op.offset(centre.dim() - 1, centre.dtype, plain)
            centres.append(centre if offset is None else centre + offset)
            projected_errors.append(
                node.op.apply(projected_errors[source].flatten(0, 1), plain).unflatten(
                    0, projected_errors[source].shape[:2]
                )
            )
        elif node.kind == "sum":
            centres.append(centres[source] + centres[node.inputs[1]])
            projected_errors.append(projected_errors[source] + projected_errors[node.inputs[1]])
        else:
            if boxes[source].mixes == INEXACT:
                radius = projected_errors[source].abs().median(1).values
                boxes[source] = replace(boxes[source], lower=centres[source] - radius, upper=centres[source] + radius)
            relaxations[number] = relax(node, boxes[source], adaptive=False, rounding=False)
            _, slope, lift = relaxations[number]
            centres.append(slope * centres[source] + lift / 2)
            projected_errors.append(slope[:, None] * projected_errors[source] + projected(lift / 2))
        boxes.append(interval.step(node, [boxes[k] for k in node.inputs], place))
    return boxes, relaxations
