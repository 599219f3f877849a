"""A search whose processes are killed at random moments, and gone on with: whether it finds what it finds undisturbed.

    python benchmarks/kills.py MODEL --data TEXT [--kills 30] [--seed 0] [--out FILE] [-- OPTIONS]
    python benchmarks/kills.py MODEL --data TEXT --every 10 [--out FILE] [-- OPTIONS]

OPTIONS are the search's; it has two workers, with `--ray` two actors. The undisturbed search runs first, in one process
and with workers. Then there is a search per kill: at a moment between its start and the time that the undisturbed one
takes, SIGKILL goes to the driver, to all workers, to everything below the driver (fork server, Ray's daemons), or to
driver and all that is below it; where the driver is gone, `--resume` goes on. With `--every` there is one search, and
one of its workers in turn is killed every so many seconds. Compared are the journal, but for times, `best.json` and
`selection.json`; counted is what outlives a killed driver by more than `--grace` seconds.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import facts, publish
from processes import below, command_of, end, ended, workers_of

_WHOM: dict[str, Callable[[int], set[int]]] = {
    "driver": lambda driver: {driver},
    "workers": workers_of,
    "all below the driver": below,
    "driver and workers": lambda driver: {driver, *below(driver)},
}
_EVERY = 0.05
"""Seconds between two looks at a search."""


class Search:
    """Run directories of one search.

    Args:
        home: where they lie.
        argv: of the search, without `--out`.
        workers: options that give it workers.
    """

    def __init__(self, home: Path, argv: list[str], workers: list[str]) -> None:
        self.home, self.argv, self.workers = home, argv, workers

    def begun(self, name: str, options: list[str]) -> "subprocess.Popen[bytes]":
        """A process that searches in the run directory of this name; what it says is in NAME.log."""
        argv = [sys.executable, "-m", "tracenas", *self.argv, *options, "--out", str(self.home / name)]
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

    def whole(self, name: str, options: list[str]) -> float:
        """One that nothing happens to; the seconds that it takes."""
        started = time.monotonic()
        if self.begun(name, options).wait() != 0:
            raise SystemExit((self.home / f"{name}.log").read_text()[-2000:])
        return time.monotonic() - started

    def lines(self, name: str) -> int:
        """Candidates so far."""
        journal = self.home / name / "journal.jsonl"
        return journal.read_bytes().count(b"\n") if journal.is_file() else 0

    def found(self, name: str) -> dict[str, Any]:
        """What the search found, but for times."""
        run = self.home / name
        if not (run / "best.json").is_file():
            return {}
        records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
        journal = [{key: value for key, value in record.items() if key != "seconds"} for record in records]
        rest = {file: json.loads((run / file).read_text()) for file in ("best.json", "selection.json")}
        return {"journal": journal, **rest}

    def said(self, name: str) -> str:
        """Its last line."""
        return ((self.home / f"{name}.log").read_text().strip().splitlines() or [""])[-1]


def killed_once(search: Search, name: str, whom: str, moment: float, grace: float) -> dict[str, Any]:
    """A search, a kill, and what comes of it."""
    process = search.begun(name, search.workers)
    started = time.monotonic()
    while process.poll() is None and time.monotonic() - started < moment:
        time.sleep(_EVERY)
    everything = below(process.pid)
    hit = _WHOM[whom](process.pid) if process.poll() is None else set()
    record = {"whom": whom, "second": round(moment, 2), "candidates": search.lines(name), "killed": len(hit)}
    end(hit)
    resumed = 0
    if process.pid in hit:
        process.wait()
        left = ended(everything, grace)
        record["outlived the driver"] = sorted({command_of(pid).decode(errors="replace")[:60] for pid in left})
        process, resumed = search.begun(name, [*search.workers, "--resume"]), 1
    record["status"] = process.wait()
    record["resumed"] = resumed
    return record


def killed_again_and_again(search: Search, name: str, every: float) -> dict[str, Any]:
    """A search of whose workers one is killed every so many seconds, in turn."""
    process, moments, turn = search.begun(name, search.workers), list[int](), 0
    due = time.monotonic() + every
    while process.poll() is None:
        time.sleep(_EVERY)
        if time.monotonic() >= due and (workers := sorted(workers_of(process.pid))):
            end([workers[turn % len(workers)]])
            moments.append(search.lines(name))
            turn, due = turn + 1, time.monotonic() + every
    return {"every, seconds": every, "killed": len(moments), "candidates": moments, "status": process.returncode}


def at_random(search: Search, args: argparse.Namespace, undisturbed: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Kills at random moments of as many searches."""
    rng, records = random.Random(args.seed), list[dict[str, Any]]()
    for number in range(args.kills):
        whom = list(_WHOM)[number % len(_WHOM)]
        name = f"kill-{number}"
        record = killed_once(search, name, whom, rng.uniform(0, seconds), args.grace)
        record["same"] = search.found(name) == undisturbed
        if not record["same"]:
            record["said"] = search.said(name)
        records.append(record)
        print(json.dumps(record), file=sys.stderr, flush=True)
    return {
        "kills": len(records),
        "that hit a process": sum(r["killed"] > 0 for r in records),
        "whom": dict(Counter(r["whom"] for r in records)),
        "same": sum(r["same"] for r in records),
        "records": records,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float)
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("--keep", type=Path, help="directory for the runs; default: one that is removed")
    parser.add_argument("--out")
    parser.add_argument("--ray", action="store_true")
    before, options = sys.argv[1:], list[str]()
    if "--" in before:
        before, options = before[: before.index("--")], before[before.index("--") + 1 :]
    args = parser.parse_args(before)
    workers = ["--workers", "2", *(["--ray", "auto"] if args.ray else [])]
    with tempfile.TemporaryDirectory() as directory:
        home = args.keep or Path(directory)
        home.mkdir(parents=True, exist_ok=True)
        search = Search(home, ["search", args.model, "--data", args.data, *options], workers)
        alone = search.whole("alone", [])
        seconds = search.whole("undisturbed", workers)
        undisturbed = search.found("alone")
        result = {
            "candidates": search.lines("alone"),
            "seconds": {"one process": round(alone, 1), "undisturbed": round(seconds, 1)},
            "undisturbed is the same": search.found("undisturbed") == undisturbed,
        }
        if args.every is None:
            result["at random moments"] = at_random(search, args, undisturbed, seconds)
        else:
            again = killed_again_and_again(search, "again", args.every)
            result["again and again"] = {**again, "same": search.found("again") == undisturbed}
    shown = {"model": Path(args.model).name, "options": " ".join(options + workers), "seed": args.seed}
    publish({"benchmark": "kills", **shown, "machine": facts(), **result}, args.out)


if __name__ == "__main__":
    main()
