"""What a process says of itself."""

import subprocess
import sys

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
