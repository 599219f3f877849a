"""Memory of this process, as the system counts it."""

import ctypes
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["available_memory", "give_back", "host_memory", "peak_memory", "resident_memory"]


def give_back() -> None:
    """Give what was freed back to the system: glibc keeps pages between pieces that are in use, hundreds of MB here."""
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none that ctypes can open
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory(line: str = "VmRSS") -> int | None:
    """A line of /proc/self/status in bytes: `VmRSS` (now) or `VmHWM` (the peak); None where there is no /proc."""
    try:
        for entry in Path("/proc/self/status").read_text().splitlines():
            if entry.startswith(line + ":"):
                return int(entry.split()[1]) * 1024
    except OSError:
        pass
    return None


def host_memory() -> int | None:
    """Memory that this process may have, bytes: the machine's, or its control group's limit; None where unknown."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            whole = min(whole, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return whole


def available_memory() -> int | None:
    """Memory that a process could take without swapping, bytes; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def peak_memory() -> int:
    """The largest resident memory of this process, bytes.

    `ru_maxrss` is taken only where there is no /proc: on Linux it begins with that of the process that started this.
    """
    peak = resident_memory("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
