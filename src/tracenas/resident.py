"""Memory of this process, as the system counts it."""

import resource
import sys
from pathlib import Path

__all__ = ["peak_memory", "resident_memory"]


def resident_memory(line: str = "VmRSS") -> int | None:
    """A line of /proc/self/status in bytes: `VmRSS` (now) or `VmHWM` (the peak); None where there is no /proc."""
    try:
        for entry in Path("/proc/self/status").read_text().splitlines():
            if entry.startswith(line + ":"):
                return int(entry.split()[1]) * 1024
    except OSError:
        pass
    return None


def peak_memory() -> int:
    """The largest resident memory of this process, bytes.

    `ru_maxrss` is taken only where there is no /proc: on Linux it begins with that of the process that started this.
    """
    peak = resident_memory("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
