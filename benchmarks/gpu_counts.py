"""How many kernels a step launches, and how often it makes the host wait for the device."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaMemsetAsync")
_WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")


class Counted:
    """Inside, everything counts; `found` says how much after."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._seen = profile(activities=[ProfilerActivity.CPU, *cuda])

    def __enter__(self) -> Counted:
        self._seen.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seen.__exit__(*error)

    def found(self) -> dict[str, int]:
        """Kernels, copies and graphs launched, and waits; on a CPU operations stand for launches."""
        totals = {event.key: event.count for event in self._seen.key_averages()}
        waits = sum(totals.get(name, 0) for name in _WAITS)
        if self.device.type != "cuda":
            return {"operations": sum(n for name, n in totals.items() if name.startswith("aten::")), "waits": waits}
        return {
            "launches": sum(totals.get(name, 0) for name in _LAUNCHES),
            "copies": totals.get("cudaMemcpyAsync", 0), "graphs": totals.get("cudaGraphLaunch", 0),
            "stream_waits": totals.get("cudaStreamSynchronize", 0), "waits": waits,
        }  # fmt: skip
