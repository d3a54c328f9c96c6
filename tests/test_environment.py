"""Memory that a process frees stays with it."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys, threading
from research import environment

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

if sys.argv[1] == "keep":
    environment.keep_memory()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(2**26)  # 16,384 pages, more than glibc keeps by itself
    libc.memset(block, 1, 2**26)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

counts = []
thread = threading.Thread(target=lambda: counts.extend(faults() for _ in range(3)))
thread.start()
thread.join()
print(counts[-1])
"""


def faults(how, **more):
    command = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, **more).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has the switches")
def test_memory_that_a_thread_frees_is_not_faulted_in_again():
    assert faults("keep") < 100
    assert faults("not") > 4000
    tuned = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=4096"}
    assert faults("keep", env=tuned) > 4000  # what the user has set is left as it is
