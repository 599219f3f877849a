"""A command and the memory of its own that it and its children take, read ten times a second; ended beyond a limit.

    python benchmarks/within_limit.py [--limit 3.5GB] [--trace FILE] -- COMMAND…

Counted are anonymous and shared memory (RssAnon and RssShmem of /proc): not the pages of mapped files, which the system
takes back when it needs them. The peak is printed as JSON; exit status of the command, or 137 where the limit ended it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from processes import own_memory

from tracenas.formats import parse_bytes

_EVERY = 0.1
"""Seconds between two readings."""


def main() -> None:
    """Run the command and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", help="of all processes together: 3.5GB, 700MiB")
    parser.add_argument("--trace", help="file that gets seconds and MiB of every reading that is a new peak")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    limit = None if args.limit is None else parse_bytes(args.limit)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    begun, peak, peaks = time.monotonic(), 0, []
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        taken = sum(own_memory(pid) for pid in session_members(process.pid))
        if taken > peak:
            peak = taken
            peaks.append(f"{time.monotonic() - begun:.1f} {peak / 2**20:.0f}\n")
        if limit is not None and taken > limit:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            break
        time.sleep(_EVERY)
    if args.trace:
        Path(args.trace).write_text("".join(peaks))
    ended = limit is not None and peak > limit
    record = {
        "peak, MiB": round(peak / 2**20),
        "seconds": round(time.monotonic() - begun, 1),
        "ended by the limit": ended,
    }
    print(json.dumps(record), file=sys.stderr)
    raise SystemExit(137 if ended else process.returncode)


def session_members(leader: int) -> list[int]:
    """Processes of the session that `leader` began."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                behind_name = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(behind_name[3]) == leader:
                members.append(int(entry.name))
    return members


if __name__ == "__main__":
    main()
