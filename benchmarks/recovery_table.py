"""Perplexity right after pruning, after compensation, and after N and 4N recovery steps from either start.

    python benchmarks/recovery_table.py MODEL --data TEXT --eval-text TEXT --work DIR --journal FILE.jsonl
        [--params 60% 50%] [--seeds 0 1 2] [--steps 50] [--set KEY=VALUE …] [--limit CELLS] [--out FILE.json]

One `tracenas run` per budget and seed gives the found, the uniform and the first random architecture (resumable, and
shared with chooses.py where --work is the same). Every cell is one line of the journal: start with it again and it goes
on with the next cell. Cells come in an order that makes the table useful early: seeds last.
"""

import argparse
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import Cells, model_name, over_seeds, pairs, perplexity, recovered
from machine import facts, publish

import tracenas
from tracenas.rundir import write_json

STARTS, METHODS = ("pruned", "compensated"), ("pretrain", "distill")
SEARCH: dict[str, Any] = {
    "proxy": "phi",
    "seq_len": 256,
    "eval_windows": 128,
    "population": 20,
    "elites": 6,
    "iterations": 12,
}
FIELDS = ("model", "params", "seed", "architecture", "start", "method", "steps")
TRAIN: dict[str, Any] = {"seq_len": 128, "global_batch": 4, "learning_rate": 3e-4, "eval_windows": 128}


class Table:
    """The cells of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.name = model_name(args.model)
        self.cells = Cells(args.journal, FIELDS)
        self.train = TRAIN | pairs(args.set)
        self.search = SEARCH | pairs(args.search)

    def wanted(self) -> Iterator[dict[str, Any]]:
        """All cells in order: per seed and budget those without training first."""
        steps = (self.args.steps, 4 * self.args.steps)
        names = ("found", "uniform", "random")
        for seed, params in itertools.product(self.args.seeds, self.args.params):
            where = {"model": self.name, "params": params, "seed": seed}
            yield {**where, "architecture": "base", "start": "base", "method": "none", "steps": 0}
            for start, name in itertools.product(STARTS, names):
                yield {**where, "architecture": name, "start": start, "method": "none", "steps": 0}
            for count, method, start, name in itertools.product(steps, METHODS, STARTS, names):
                yield {**where, "architecture": name, "start": start, "method": method, "steps": count}

    def run(self, params: str, seed: int) -> Path:
        """The run directory of a budget and seed, with an architecture file per rival."""
        out: Path = self.args.work / f"{self.name}-phi-{params.rstrip('%')}-{seed}"
        marker = out / "arch-random.json"
        if not marker.is_file():
            outcome = tracenas.run(
                self.args.model,
                data=self.args.data,
                eval_text=self.args.eval_text,
                params=params,
                out=out,
                seed=seed,
                resume=True,
                compensate="auto",
                **{**self.search, "random_architectures": self.args.random},
            )
            by_name = {row["name"]: row for row in outcome.comparison}
            for name, row in (("uniform", "uniform"), ("random", "random 1")):
                write_json(out / f"arch-{name}.json", {"architecture": by_name[row]["arch"]})
        return out

    def checkpoint(self, cell: dict[str, Any]) -> str:
        """The checkpoint a cell starts from, written if it is not there."""
        if cell["start"] == "base":
            return str(self.args.model)
        run, name = self.run(cell["params"], cell["seed"]), cell["architecture"]
        out = run / f"{cell['start']}-{name}"
        if not (out / "config.json").is_file():
            arch = run / ("best.json" if name == "found" else f"arch-{name}.json")
            how: dict[str, Any] = {"compensate": "none"}
            if cell["start"] == "compensated":
                how = {"compensate": self.args.compensate, "data": self.args.data}
            tracenas.prune(self.args.model, arch=arch, out=out, save_dtype="fp32", **how)
        return str(out)

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Perplexity and loss of one cell."""
        start = self.checkpoint(cell)
        if cell["steps"]:
            extra = {"teacher": str(self.args.model)} if cell["method"] == "distill" else {}
            how = {"method": cell["method"], "steps": cell["steps"], "seed": cell["seed"], **self.train, **extra}
            start = recovered(start, self.args.work / "recovered", data=self.args.data, **how)
        found = perplexity(start, self.args.eval_text, 256, self.search["eval_windows"])
        return {**found, "train": self.train if cell["steps"] else None, **facts()}

    def rows(self) -> list[dict[str, Any]]:
        """Means over seeds, the gap to the base in nats, and the share of the pruned model's gap that is closed."""
        base = [c["nll"] for c in self.cells.where(model=self.name, start="base")]
        found: dict[tuple[Any, ...], list[float]] = {}
        for cell in self.cells.where(model=self.name):
            if cell["start"] != "base":
                key = tuple(cell[k] for k in ("params", "architecture", "start", "method", "steps"))
                found.setdefault(key, []).append(cell["nll"])
        rows = []
        for key, values in found.items():
            params, architecture, start, method, steps = key
            gap = statistics.mean(values) - statistics.mean(base)
            pruned = found.get((params, architecture, "pruned", "none", 0), values)
            whole = statistics.mean(pruned) - statistics.mean(base)
            rows.append(
                {
                    "params": params,
                    "architecture": architecture,
                    "start": start,
                    "method": method,
                    "steps": steps,
                    "seeds": len(values),
                    **over_seeds(values),
                    "gap": round(gap, 4),
                    "closed": round(1 - gap / whole, 3) if whole > 0 else None,
                }
            )
        return rows


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--work", type=Path, required=True, help="directory of the runs and checkpoints")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--params", nargs="+", default=["60%", "50%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50, help="N")
    parser.add_argument("--random", type=int, default=5, help="random architectures of the run; the first is used")
    parser.add_argument("--compensate", choices=("ridge", "sequential"), default="sequential")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recovery")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the runs")
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    parser.add_argument("--out")
    args = parser.parse_args()
    table = Table(args)
    table.cells.fill(table.wanted(), table.measure, args.limit)
    base = next((c["nll"] for c in table.cells.where(model=table.name, start="base")), None)
    result = {"benchmark": "recovery_table", "model": table.name, "machine": facts(), "train": table.train}
    publish({**result, "compensate": args.compensate, "base_nll": base, "table": table.rows()}, args.out)


if __name__ == "__main__":
    main()
