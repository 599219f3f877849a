"""A search whose processes are killed at random moments, and gone on with: whether it finds what it finds undisturbed.

    python benchmarks/kills.py MODEL --data TEXT [--kills 30] [--seed 0] [--out FILE] [-- OPTIONS]
    python benchmarks/kills.py MODEL --data TEXT --every 10 [--out FILE] [-- OPTIONS]

OPTIONS are the search's; it has two workers, with `--ray` two actors. An undisturbed one in one process runs first.
Then SIGKILL goes at random moments, in turn, to the driver, to all workers, to all below the driver (fork server,
Ray's daemons), and to driver and all that is below it; where the driver is gone, `--resume` goes on; where the search
has ended, another begins, until there were so many kills. With `--every` one of the workers in turn is killed every so
many seconds of one search. Compared are the journals, but for times, `best.json` and `selection.json`; counted is what
outlives a killed driver by more than `--grace` seconds.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import model_name
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


def killed_at_random(search: Search, args: argparse.Namespace, undisturbed: dict[str, Any]) -> dict[str, Any]:
    """Searches that are killed until there were so many kills; what ends before is followed by another."""
    rng, records, same = random.Random(args.seed), list[dict[str, Any]](), list[bool]()
    while len(records) < args.kills or not same:
        name = f"search-{len(same)}"
        process = search.begun(name, search.workers)
        while process.poll() is None or process.returncode == -signal.SIGKILL:
            if process.poll() is not None:
                process = search.begun(name, [*search.workers, "--resume"])
            moment = time.monotonic() + rng.uniform(0, args.within)
            while process.poll() is None and (time.monotonic() < moment or len(records) == args.kills):
                time.sleep(_EVERY)
            if process.poll() is None:
                whom = list(_WHOM)[len(records) % len(_WHOM)]
                record = {"search": len(same), "candidates": search.lines(name), **killed(process, whom, args.grace)}
                records.append(record)
                print(json.dumps(record), file=sys.stderr, flush=True)
        same.append(search.found(name) == undisturbed)
        print(json.dumps({"search": name, "same": same[-1], "said": search.said(name)}), file=sys.stderr, flush=True)
    return {
        "kills": len(records),
        "that hit a process": sum(r["killed"] > 0 for r in records),
        "after the first candidate": sum(r["candidates"] > 0 for r in records),
        "outlived a driver": sum(len(r.get("outlived", ())) for r in records),
        "searches": len(same),
        "same": sum(same),
        "records": records,
    }


def killed(process: "subprocess.Popen[bytes]", whom: str, grace: float) -> dict[str, Any]:
    """SIGKILL to a search's driver, or to what is below it."""
    everything, hit = below(process.pid), _WHOM[whom](process.pid)
    end(hit)
    if process.pid not in hit:
        return {"whom": whom, "killed": len(hit)}
    process.wait()
    left = ended(everything, grace)
    return {
        "whom": whom,
        "killed": len(hit),
        "outlived": sorted(command_of(pid).decode(errors="replace")[:60] for pid in left),
    }


def killed_again_and_again(search: Search, name: str, every: float) -> dict[str, Any]:
    """A search of whose workers one is killed every so many seconds, in turn."""
    process, moments, turn = search.begun(name, search.workers), list[int](), 0
    started = time.monotonic()
    due = started + every
    while process.poll() is None:
        time.sleep(_EVERY)
        if time.monotonic() >= due and (workers := sorted(workers_of(process.pid))):
            end([workers[turn % len(workers)]])
            moments.append(search.lines(name))
            turn, due = turn + 1, time.monotonic() + every
    return {
        "every, seconds": every,
        "took, seconds": round(time.monotonic() - started, 1),
        "killed": len(moments),
        "candidates at the kills": moments,
        "status": process.returncode,
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float)
    parser.add_argument("--within", type=float, default=15.0, help="seconds from a start or a kill to the next")
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
        seconds = None if search.found("alone") else round(search.whole("alone", []), 1)
        undisturbed = search.found("alone")
        if args.every is None:
            kills = killed_at_random(search, args, undisturbed)
        else:
            kills = killed_again_and_again(search, "again", args.every)
            kills["same"] = search.found("again") == undisturbed
        result = {"candidates": search.lines("alone"), "one process, seconds": seconds, **kills}
    shown = {"model": model_name(args.model), "options": " ".join(options + workers), "seed": args.seed}
    publish({"benchmark": "kills", **shown, "machine": facts(), **result}, args.out)


if __name__ == "__main__":
    main()
