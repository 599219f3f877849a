"""Processes below a command: which they are, what memory of their own they take, and whether they have ended."""

import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

__all__ = ["below", "command_of", "end", "ended", "own_memory", "workers_of"]


def below(parent: int) -> set[int]:
    """All processes that descend from one."""
    children: set[int] = set()
    with suppress(OSError):  # it has ended
        for thread in Path(f"/proc/{parent}/task").iterdir():
            with suppress(OSError):
                children |= {int(pid) for pid in (thread / "children").read_text().split()}
    return children.union(*(below(child) for child in children))


def workers_of(driver: int) -> set[int]:
    """Those below a command that score: Ray's actors, or the processes below its fork server."""
    found = below(driver)
    actors = {pid for pid in found if b"RemoteWorker" in command_of(pid)}
    servers = {pid for pid in found if b"forkserver" in command_of(pid)}
    forked = {pid for server in servers for pid in below(server)}
    return actors | forked


def command_of(pid: int) -> bytes:
    """Its command line; empty once it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def own_memory(pid: int) -> int:
    """RssAnon + RssShmem of a process, bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon", "RssShmem")))


def end(pids: Iterable[int]) -> None:
    """SIGKILL, to those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def ended(pids: Iterable[int], seconds: float) -> set[int]:
    """Those that are still there after so many seconds; empty as soon as none is."""
    left, until = set(pids), time.monotonic() + seconds
    while (left := {pid for pid in left if _alive(pid)}) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
