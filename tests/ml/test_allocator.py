import os
import platform
import subprocess
import sys

import pytest

from jobs.ml import allocator

ROUNDS = """
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
size = 20 * 2**20
for n in range(6):
    if n == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    taken = [libc.malloc(size) for _ in range(4)]
    for piece in taken:
        libc.memset(piece, 1, size)
    for piece in taken:
        libc.free(piece)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(environment: dict[str, str]) -> int:
    """Of three rounds in which 80 MiB are taken, written and given back, after three others."""
    bare = {name: value for name, value in os.environ.items() if name != allocator.NAME and "MALLOC" not in name}
    ended = subprocess.run(
        [sys.executable, "-c", ROUNDS], env=bare | environment, capture_output=True, check=True, timeout=60
    )
    return int(ended.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do not read the settings")
def test_a_process_keeps_the_memory_that_it_will_ask_for_again(monkeypatch) -> None:
    monkeypatch.delenv(allocator.NAME, raising=False)
    assert page_faults({}) > 10_000
    assert page_faults(allocator.environment()) < 100


def test_settings_of_ones_own_stay(monkeypatch) -> None:
    monkeypatch.setenv(allocator.NAME, "glibc.malloc.tcache_count=0")
    assert allocator.environment() == {allocator.NAME: "glibc.malloc.tcache_count=0"}
