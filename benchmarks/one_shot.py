"""One-shot methods at equal size: perplexity right after pruning and after N recovery steps, seed by seed.

    python benchmarks/one_shot.py MODEL --data TEXT --eval-text TEXT --work DIR --journal FILE.jsonl
        [--params 60% 50% 40%] [--methods nirvana …] [--seeds 0 1 2] [--steps 50] [--candidates 8]
        [--calibration samples=32 seq_len=128] [--set KEY=VALUE …] [--search KEY=VALUE …] [--limit CELLS]
        [--out FILE.json]

A seed is a calibration draw. Every method is measured with the calibration of that seed as drawn, and with the best
of K sets of that seed (`tracenas select-calibration` by the method itself; `search`, TraceNAS by Φ, takes NIRVANA's).
Magnitude reads no text and is not selected for. Every cell is one line of the journal: start with it again and it goes
on with the next cell. Cells come in an order that makes the table useful early: seeds last, all without training first.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cells import Cells, model_name, over_seeds, pairs, perplexity, recovered, searched
from machine import facts, publish

import tracenas

ONE_THRESHOLD = ("wanda", "magnitude", "taylor")
"""Methods that these tables share out by `--allocation global`."""
METHODS = ("nirvana", "wanda", "magnitude", "taylor", "flap", "shortgpt", "uniform", "search")
FIELDS = ("model", "params", "seed", "method", "selected", "steps")
CALIBRATION: dict[str, Any] = {"samples": 32, "seq_len": 128}
SEARCH: dict[str, Any] = {"proxy": "phi", "population": 20, "elites": 6, "iterations": 12}
TRAIN: dict[str, Any] = {"seq_len": 128, "global_batch": 4, "learning_rate": 3e-4}
WINDOW, WINDOWS = 256, 128


class Table:
    """The cells of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.name = model_name(args.model)
        self.calibration = CALIBRATION | pairs(args.calibration)
        self.search = SEARCH | pairs(args.search)
        self.train = TRAIN | pairs(args.set)
        self.cells = Cells(args.journal, FIELDS)

    def wanted(self) -> Iterator[dict[str, Any]]:
        """All cells in order."""
        yield {"model": self.name, "params": "100%", "seed": 0, "method": "base", "selected": False, "steps": 0}
        for seed, steps, selected in itertools.product(self.args.seeds, (0, self.args.steps), (False, True)):
            for params, method in itertools.product(self.args.params, self.args.methods):
                if not (selected and method == "magnitude"):
                    where = {"model": self.name, "params": params, "seed": seed}
                    yield {**where, "method": method, "selected": selected, "steps": steps}

    def place(self, cell: dict[str, Any], what: str) -> Path:
        """A file or directory of a cell's method, budget, seed and selection."""
        parts = (
            self.name,
            cell["method"],
            cell["params"].rstrip("%"),
            cell["seed"],
            "selected" if cell["selected"] else "drawn",
        )
        work: Path = self.args.work
        return work / ("-".join(map(str, parts)) + what)

    def data(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What the cell is calibrated on: a seeded draw of the text, or the chosen token file."""
        if not cell["selected"]:
            return {"data": self.args.data, "seed": cell["seed"], **self.calibration}
        method = "nirvana" if cell["method"] == "search" else cell["method"]
        path = self.place({**cell, "method": method}, ".safetensors")
        if not path.is_file():
            found = tracenas.select_calibration(
                self.args.model,
                data=self.args.data,
                params=cell["params"],
                method=method,
                candidates=self.args.candidates,
                seed=cell["seed"],
                out=path,
                **self.calibration,
            )
            print(json.dumps({"selected": str(path), **found.to_json()["kl"]}), flush=True)
        return {"data": str(path), "seed": cell["seed"]}

    def checkpoint(self, cell: dict[str, Any]) -> str:
        """The pruned checkpoint of a cell, written if it is not there."""
        if cell["method"] == "base":
            return str(self.args.model)
        out = self.place(cell, "")
        if not (out / "config.json").is_file():
            given = self.data(cell)
            common: dict[str, Any] = {"out": out, "save_dtype": "fp32"}
            if cell["method"] == "search":
                how = {"params": cell["params"], **given, **self.search}
                run = searched(self.args.model, self.place(cell, "-run"), **how)
                tracenas.prune(self.args.model, arch=run / "best.json", compensate="auto", **common)
            else:
                common |= {"allocation": "global"} if cell["method"] in ONE_THRESHOLD else {}
                how = {"method": cell["method"], "params": cell["params"], "compensate": "none"}
                tracenas.prune(self.args.model, **how, **given, **common)
        return str(out)

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """Perplexity and loss of one cell."""
        start = self.checkpoint(cell)
        if cell["steps"]:
            how = {"method": "pretrain", "steps": cell["steps"], "seed": 0, **self.train}
            start = recovered(start, self.args.work / f"{self.name}-recovered", data=self.args.data, **how)
        found = perplexity(start, self.args.eval_text, WINDOW, WINDOWS)
        return {**found, "train": self.train if cell["steps"] else None, **facts()}

    def rows(self) -> list[dict[str, Any]]:
        """Mean and spread over seeds, best method first within budget, steps and selection."""
        found: dict[tuple[Any, ...], list[float]] = {}
        for cell in self.cells.where(model=self.name):
            if cell["method"] != "base":
                key = tuple(cell[k] for k in ("params", "steps", "selected", "method"))
                found.setdefault(key, []).append(cell["nll"])
        rows = [
            {
                **dict(zip(("params", "steps", "selected", "method"), key, strict=True)),
                "seeds": len(values),
                **over_seeds(values),
            }
            for key, values in found.items()
        ]
        return sorted(rows, key=lambda r: (str(r["params"]), r["steps"], r["selected"], r["nll"]))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--work", type=Path, required=True, help="directory of the checkpoints, token sets and runs")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--params", nargs="+", default=["60%", "50%", "40%"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50, help="N")
    parser.add_argument("--candidates", type=int, default=8, help="K")
    parser.add_argument("--calibration", nargs="*", default=[], metavar="KEY=VALUE", help="samples and seq_len")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the recovery")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the searches")
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    table = Table(args)
    table.cells.fill(table.wanted(), table.measure, args.limit)
    base = next((c["nll"] for c in table.cells.where(model=table.name, method="base")), None)
    result = {"benchmark": "one_shot", "model": table.name, "machine": facts(), "calibration": table.calibration}
    more = {"candidates": args.candidates, "train": table.train, "search": table.search}
    publish({**result, **more, "base_nll": base, "table": table.rows()}, args.out)


if __name__ == "__main__":
    main()
