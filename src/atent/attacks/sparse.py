"""What the attacks on few elements, pixels or patches share."""

from __future__ import annotations

import torch
from torch import Tensor

from atent.threat import Threat


def counts(threat: Threat, x: Tensor) -> Tensor:
    """How many blocks of each sample may change, no more than it has: int64 (n,)."""
    k = torch.as_tensor(threat.radii(x.double()), dtype=torch.float64, device=x.device)
    return k.expand(len(x)).clamp_max(threat.blocks(x.shape[1:]).count).long()
