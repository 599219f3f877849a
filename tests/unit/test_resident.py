"""What a process says of itself."""

import platform
import subprocess
import sys

import pytest

HEAVY = """
import subprocess, sys
held = bytearray(b"1") * 300_000_000
child = "from tracenas.resident import peak_memory, resident_memory; print(peak_memory(), resident_memory())"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""


def test_the_peak_is_that_of_this_process_not_of_the_one_that_started_it() -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, check=True)
    peak, resident = map(int, done.stdout.split())  # each counted to within some pages
    assert 0 < peak < 250_000_000 and abs(peak - resident) < 50_000_000


FREED = """
import torch
from tracenas.resident import give_back, resident_memory
kept, freed = [], []
for _ in range(2000):
    freed.append(torch.ones(25_000))  # 100 kB: below what gets pages of its own
    kept.append(torch.ones(100))
del freed
before = resident_memory()
give_back()
print(before - resident_memory())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_was_freed_between_pieces_in_use_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 150_000_000
