"""One search of all sizes beside dedicated searches and one-shot curves, on one choice of text per seed.

    python benchmarks/fronts.py MODEL --data TEXT --eval NAME=TEXT [--eval …] --sizes 60% 70% 80% 90% --work DIR
        --journal FILE.jsonl [--effort quick] [--seeds 0 1 2] [--further 8] [--windows 16] [--seq-len 512]
        [--sensitivity DIR/table-SEED.safetensors] [--dtype bf16] [--threads 1] --out FILE.json

Cells of a seed, in this order:
- `front`: `tracenas search --front --smallest 50%`; what it cost in evaluations, sequences and CPU seconds;
- `search` at every size: a search of that size alone, with the same effort, text and sensitivity table;
- `curve` at 50, 55, …, 95 % of the parameters: the front's best by `tracenas best`, and `uniform`, `mlp` and `flap`
  (FLAP's widths), units in the searches' order;
- `best` at every size: `tracenas best`, from the front's journal alone (`best`), then with `--further` evaluations.
All architectures are refitted as the searches refit them, and have losses of the searches' own text and of the first
windows of every other, not overlapping, without special tokens; differences are paired over windows. Hypervolumes are
those of the ten sizes' losses below the loss of equal ratios at the smallest size. Every cell is a line of the journal:
start the command again and it goes on.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cells, model_name, searched
from machine import facts, publish

import tracenas
from tracenas.journal import Journal
from tracenas.strategies.dominance import volume

FIELDS = ("model", "seed", "kind", "size")
SIZES = tuple(f"{size}%" for size in range(50, 100, 5))
"""Of curves."""
METHODS = {"uniform": "uniform", "mlp": "mlp", "flap": "global_units"}
"""Curves by the allocation that makes them."""

Record = Mapping[str, Any]


class Measurement:
    """The cells of all seeds; one seed's model is in memory at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, model_name(args.model)
        self.cells = Cells(args.journal, FIELDS)
        self._losses: tuple[int, Any] | None = None

    def wanted(self) -> list[dict[str, Any]]:
        """All of them."""
        args = self.args
        kinds = [("front", "all"), *(("search", size) for size in args.sizes)]
        kinds += [(kind, size) for kind in ("front best", *METHODS) for size in SIZES]
        kinds += [("best", size) for size in args.sizes]
        kinds += [("best further", size) for size in args.sizes if args.further]
        return [dict(zip(FIELDS, (self.name, seed, *kind), strict=True)) for seed in args.seeds for kind in kinds]

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell holds."""
        seed, kind, size = cell["seed"], cell["kind"], cell["size"]
        begun = time.process_time()
        if kind in ("front", "search"):
            found = self._search(seed, None if kind == "front" else size)
        elif kind in METHODS:
            found = self._of_seed(seed).one_shot(METHODS[kind], size)
        else:
            further = {"evaluations": self.args.further} if kind == "best further" else {}
            best = tracenas.best(self.run(seed), params=size, **further)
            found = {"architecture": best.architecture.to_json(), "score": best.score}
            if further:
                found |= {"cpu_seconds": round(time.process_time() - begun, 1), "evaluations": self.args.further}
        if kind != "front" and found["architecture"] is not None:
            found |= self._of_seed(seed).measured(found["architecture"])
        return {**found, **facts()}

    def run(self, seed: int, size: str | None = None) -> Path:
        """The run directory of a search; of all sizes, if none is said."""
        path: Path = self.args.work / f"front-{seed}" if size is None else self.args.work / f"{size.rstrip('%')}-{seed}"
        return path

    def settings(self, seed: int) -> dict[str, Any]:
        """Of every search of a seed."""
        args = self.args
        table = (
            {} if args.sensitivity is None else {"sensitivity": Path(str(args.sensitivity).replace("SEED", str(seed)))}
        )
        how = {"effort": args.effort, "dtype": args.dtype, "threads": args.threads}
        return {"data": args.data, "seed": seed, **how, **table}

    def _search(self, seed: int, size: str | None) -> dict[str, Any]:
        run = self.run(seed, size)
        whole = not (run / "journal.jsonl").is_file()
        begun = time.process_time()
        what = {"front": True, "smallest": SIZES[0]} if size is None else {"params": size}
        searched(self.args.model, run, **what, **self.settings(seed))
        seconds = round(time.process_time() - begun, 1) if whole else None
        return {**spent(Journal(run / "journal.jsonl").read()), "cpu_seconds": seconds, **chosen(run)}

    def _of_seed(self, seed: int) -> Any:
        if self._losses is None or self._losses[0] != seed:
            from held_out import HeldOut

            self._losses = None
            given = {"model": self.args.model, "params": "95%", **self.settings(seed)}
            texts = (self.args.eval, self.args.windows, self.args.seq_len)
            self._losses = seed, HeldOut(given, self.run(seed), texts)
        return self._losses[1]


def spent(records: Sequence[Record]) -> dict[str, Any]:
    """What a journal cost: candidates, those that a race stopped, and sequences that were run."""
    return {
        "evaluations": len(records),
        "stopped": sum("stopped" in record for record in records),
        "evaluation_seconds": round(sum(record.get("seconds") or 0.0 for record in records), 1),
    }


def chosen(run: Path) -> dict[str, Any]:
    """What a search has taken, and how it ended."""
    from tracenas.rundir import read_json

    best, summary = read_json(run / "best.json"), read_json(run / "summary.json")
    front = {"hypervolume": summary["front"]["hypervolume"]} if "front" in summary else {}
    return {"architecture": best["architecture"], "score": best["score"], "settled": summary.get("settled"), **front}


def paired(one: Record, other: Record, text: str) -> tuple[float, float]:
    """Mean difference of the losses of a text, and its standard error over windows."""
    difference = np.array(one["losses"][text]) - np.array(other["losses"][text])
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5)


def mean_loss(record: Record, text: str) -> float:
    """Of a cell on a text."""
    return statistics.mean(record["losses"][text])


def gaps(cells: Sequence[Record], sizes: Sequence[str]) -> dict[str, Any]:
    """By size, kind and text: what `best` loses against the dedicated search, by seed, [nats, standard error]."""
    of = {(r["kind"], r["size"], r["seed"]): r for r in cells}
    table: dict[str, Any] = {}
    for size in sizes:
        for kind in ("best", "best further"):
            seeds = [s for k, z, s in of if (k, z) == (kind, size) and ("search", size, s) in of]
            for text in of[kind, size, seeds[0]]["losses"] if seeds else ():
                found = [paired(of[kind, size, s], of["search", size, s], text) for s in seeds]
                entry = {"by seed": [[round(x, 4) for x in one] for one in found]}
                entry["mean"] = round(statistics.mean(gap for gap, _ in found), 4)
                table.setdefault(size, {}).setdefault(kind, {})[text] = entry
    return table


def costs(cells: Sequence[Record]) -> dict[str, Any]:
    """By seed: the front's evaluations and CPU seconds over those of the mean dedicated search."""
    table = {}
    for front in (r for r in cells if r["kind"] == "front"):
        single = [r for r in cells if r["kind"] == "search" and r["seed"] == front["seed"]]
        further = [r["evaluations"] for r in cells if r["kind"] == "best further" and r["seed"] == front["seed"]]
        entry: dict[str, Any] = {"further evaluations": sum(further)}
        for key in ("evaluations", "evaluation_seconds", "cpu_seconds"):
            each = [r[key] for r in single]
            known = single and None not in (front[key], *each)
            entry[key] = {"front": front[key], "single": each}
            entry[key]["ratio"] = round(front[key] / statistics.mean(each), 2) if known else None
        table[str(front["seed"])] = entry
    return table


def hypervolumes(cells: Sequence[Record]) -> dict[str, Any]:
    """By text and kind, by seed: nats below the loss of equal ratios at the smallest size × share of the parameters."""
    table: dict[str, Any] = {}
    curves = [r for r in cells if r["kind"] in ("front best", *METHODS) and r.get("losses")]
    for seed in sorted({r["seed"] for r in curves}):
        mine = [r for r in curves if r["seed"] == seed]
        smallest = next((r for r in mine if (r["kind"], r["size"]) == ("uniform", SIZES[0])), None)
        for text in smallest["losses"] if smallest else ():
            for kind in ("front best", *METHODS):
                points = [(r["share"], -mean_loss(r, text)) for r in mine if r["kind"] == kind]
                found = volume(points, [float(SIZES[-1].rstrip("%")) / 100], -mean_loss(smallest, text))
                table.setdefault(text, {}).setdefault(kind, []).append(round(found, 4))
    return table


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--eval", action="append", required=True, metavar="NAME=TEXT", help="held-out text")
    parser.add_argument("--sizes", nargs="+", default=["60%", "70%", "80%", "90%"], help="of dedicated searches")
    parser.add_argument("--work", type=Path, required=True, help="directory for runs")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--effort", default="quick")
    parser.add_argument("--further", type=int, default=8, help="evaluations of `best` at a size on top of the front's")
    parser.add_argument("--sensitivity", type=Path, help="table of all searches, SEED in its name stands for the seed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    parser.add_argument("--out", help="write the comparison of all that is measured")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, then compare."""
    args = arguments()
    args.work.mkdir(parents=True, exist_ok=True)
    measurement = Measurement(args)
    measurement.cells.fill(measurement.wanted(), measurement.measure, args.limit)
    if args.out:
        kept = ("sizes", "effort", "further", "windows", "seq_len", "dtype", "threads")
        settings = {name: getattr(args, name) for name in kept}
        cells = measurement.cells.where(model=measurement.name)
        found = {"gaps": gaps(cells, args.sizes), "costs": costs(cells), "hypervolumes": hypervolumes(cells)}
        record = {"benchmark": "fronts", "model": measurement.name, "machine": facts(), "settings": settings}
        publish({**record, **found}, args.out)


if __name__ == "__main__":
    main()
