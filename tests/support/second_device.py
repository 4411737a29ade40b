"""A second device, "second", on a machine without a GPU: `build` compiles it, `register` makes it known to torch.

Register it in a child process only: torch has one such device, and keeps it.
"""

import contextlib
import importlib.util
import shutil
import subprocess
import sysconfig
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "second"
SOURCE = Path(__file__).with_suffix(".cpp")


def lacking():
    """Why the device cannot be built here; "" if it can."""
    if not shutil.which("g++"):
        return "needs g++"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "needs the headers of Python"
    return ""


def build(folder):
    """The compiled library in a folder; subprocess.CalledProcessError, with the compiler's words, if that fails."""
    library = Path(folder) / "second_device.so"
    include = [f"-I{p}" for p in [*cpp_extension.include_paths(), sysconfig.get_paths()["include"]]]
    libraries = [f"-L{p}" for p in cpp_extension.library_paths()]
    command = ["g++", "-shared", "-fPIC", "-std=c++20", "-O0", "-w", *include, str(SOURCE), "-o", str(library)]
    command += ["-DTORCH_EXTENSION_NAME=second_device", *libraries, "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def register(library):
    """Load the library; afterwards torch.device("second") works."""
    torch.utils.rename_privateuse1_backend(NAME)
    spec = importlib.util.spec_from_file_location("second_device", library)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    module = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0, is_initialized=lambda: True,
        _is_in_bad_fork=lambda: False, synchronize=lambda device=None: None, device=lambda d: contextlib.nullcontext(),
        get_amp_supported_dtype=lambda: [torch.bfloat16], manual_seed_all=lambda s: made.generator().manual_seed(s),
        get_rng_state=lambda device=None: made.generator().get_state(),
        set_rng_state=lambda state, device=None: made.generator().set_state(state),
    )  # fmt: skip
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
