"""Freed memory that stays with the process."""

import subprocess
import sys

import pytest

from atent.heap import _mallopt, keep_freed

# Faults of 30 rounds that make and free four arrays of 4 MB, after a first round that is not counted.
ROUNDS = """
import resource, sys
import numpy as np
from atent.heap import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed({})
def some():
    return [np.ones(2**20, np.float32) for _ in range(4)]
some()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30):
    some()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or _mallopt() is None, reason="not glibc")
def test_freed_memory_is_used_again_without_faults():
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "default")
    )
    assert kept < 1000 < given_back


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"MALLOC_TOP_PAD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}],
)
def test_what_the_user_has_set_stays(environment):
    assert not keep_freed(environment)
