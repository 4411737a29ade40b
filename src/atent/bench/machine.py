"""The machine of a measurement: processor, instruction sets, cores, caches, and package versions."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from atent.bench import rivals
from atent.threads import cores

# The flags of /proc/cpuinfo that say how wide a processor computes: x86 (vectors, matrices) and Arm.
_SETS = re.compile(r"sse4_2|avx\w*|fma|f16c|amx_\w+|asimd\w*|sve\w*|sme|sme2|bf16|i8mm|neon")


def machine() -> dict[str, Any]:
    """The machine as plain values; unavailable values are omitted."""
    capability = torch.backends.cpu.get_cpu_capability()
    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "instruction_sets": instruction_sets(Path("/proc/cpuinfo")),
        "torch_uses": capability,
        "caches": caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "default"),
        "packages": rivals.installed(),
    }
    return found


def instruction_sets(cpuinfo: Path) -> list[str]:
    """The vector and matrix instruction sets of the processor; empty if the system does not report them."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("flags", "features")):
                return sorted({flag for flag in line.partition(":")[2].split() if _SETS.fullmatch(flag)})
    return []


def caches(folder: Path) -> dict[str, str]:
    """The size of each cache of a core, such as {"L2": "1024K"}, instructions apart."""
    out = {}
    with contextlib.suppress(OSError):
        for index in sorted(folder.glob("index*")):
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
            if kind != "Instruction":
                out[f"L{level}"] = size
    return out
