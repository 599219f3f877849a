"""Memory of a long search with two workers: how far that of the driver and of the workers grows.

    python benchmarks/soak.py MODEL --data TEXT [--candidates 1000] [--from 200] [--out FILE] [-- OPTIONS]

OPTIONS are the search's. Read after every candidate's line is RssAnon + RssShmem of the driver, of its workers and of
all that is below it together; growth is the mean of the last 50 candidates over that of the 50 from `--from` on.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cells import model_name
from machine import facts, publish
from processes import below, own_memory, workers_of

_EVERY = 0.05
"""Seconds between two readings."""
_OVER = 50
"""Candidates that a mean is over."""


def read(driver: int) -> dict[str, int]:
    """Bytes of the driver, of its workers, and of all together."""
    every = {pid: own_memory(pid) for pid in {driver, *below(driver)}}
    workers = workers_of(driver)
    return {
        "driver": every[driver],
        "workers": sum(size for pid, size in every.items() if pid in workers),
        "all": sum(every.values()),
    }


def watched(argv: list[str], journal: Path) -> list[tuple[int, dict[str, int]]]:
    """Candidates so far and what was read then, over a command's life."""
    readings = []
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None:
        if journal.is_file():
            readings.append((journal.read_bytes().count(b"\n"), read(process.pid)))
        time.sleep(_EVERY)
    if process.returncode != 0:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read().decode()[-2000:])
    return readings


def grown(readings: list[tuple[int, dict[str, int]]], first: int, last: int) -> dict[str, Any]:
    """Per kind of process: MiB after the warm-up and in the end, and by how much it grew."""
    found = {}
    for name in ("driver", "workers", "all"):
        early = [taken[name] for count, taken in readings if first <= count < first + _OVER]
        late = [taken[name] for count, taken in readings if last - _OVER <= count < last]
        before, after = statistics.fmean(early), statistics.fmean(late)
        found[name] = {
            "after the warm-up, MiB": round(before / 2**20, 1),
            "at the end, MiB": round(after / 2**20, 1),
            "growth": round(after / before - 1, 4),
        }
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--from", type=int, default=200, dest="first")
    parser.add_argument(
        "--trace", type=Path, help="file that gets a line per reading: candidates, then MiB of each kind"
    )
    parser.add_argument("--out")
    before, options = sys.argv[1:], list[str]()
    if "--" in before:
        before, options = before[: before.index("--")], before[before.index("--") + 1 :]
    args = parser.parse_args(before)
    options += ["--evaluations", str(args.candidates), "--patience", "0", "--workers", "2"]
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        argv = [sys.executable, "-m", "tracenas", "search", args.model, "--data", args.data, *options]
        readings = watched([*argv, "--out", str(run)], run / "journal.jsonl")
        candidates = (run / "journal.jsonl").read_bytes().count(b"\n")
    if args.trace:
        lines = [f"{n} {' '.join(f'{v / 2**20:.1f}' for v in taken.values())}\n" for n, taken in readings]
        args.trace.write_text("".join(lines))
    result = {"candidates": candidates, "from": args.first, **grown(readings, args.first, candidates)}
    shown = {"model": model_name(args.model), "options": " ".join(options)}
    publish({"benchmark": "soak", **shown, "machine": facts(), **result}, args.out)


if __name__ == "__main__":
    main()
