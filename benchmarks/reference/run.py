"""The reference table: every way to reach a budget that exists here, on one model, with the same text and training.

    python benchmarks/reference/run.py MODEL --data TEXT --eval-text NAME=TEXT [NAME=TEXT …] --work DIR --journal FILE
        [--budgets 75% 85% 60%] [--steps 40] [--task-data DIR] [--limit-cells N] [--out FILE.json]

Rows: base, uniform, random ones, depth only (ShortGPT), one-shot methods, TraceNAS with Φ as published and with the
recommended proxy. Measured: perplexity right after pruning, after compensation and after equal recovery (distillation
from the base, from the compensated start), tasks, speed, search time. Every cell is a line of the journal: start it
again and it goes on with the next cell. On a CPU it is hours.
"""

import argparse
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Cell, Row, Setup, checkpoint, rows_of, seconds_of

import tracenas
from tracenas.rundir import Journal

sys.path.insert(0, str(Path(__file__).parents[1]))

from machine import facts, publish

STARTS = ("plain", "compensated", "recovered")
TASKS = "arc_easy,piqa,sciq,hellaswag,winogrande"


class Reference:
    """The cells of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.texts: dict[str, str] = dict(pair.split("=", 1) for pair in args.eval_text)
        first = next(iter(self.texts.values()))
        search = {k: int(v) if v.isdigit() else v for k, v in (pair.split("=", 1) for pair in args.search)}
        self.setup = Setup(args.model, args.data, first, args.work, args.seed, args.samples, args.seq_len, search)
        self.journal = Journal(args.journal)
        self.cells: dict[str, dict[str, Any]] = {r["cell"]: r for r in self.journal.read()}

    def wanted(self) -> Iterator[Cell]:
        """All cells: perplexities of every row first, then speed and tasks."""
        rows = rows_of(self.args.budgets, self.args.randoms)
        for row, start in itertools.product(rows, STARTS):
            if row.name == "base" and start != "plain":
                continue
            for text in self.texts:
                yield Cell(row, start, f"perplexity {text}")
        for row in rows:
            start = "plain" if row.name == "base" else "recovered"
            if row.name != "base":
                yield Cell(row, "compensated", "speed")
            if self.args.task_data is not None:
                yield Cell(row, start, "tasks")

    def path(self, cell: Cell) -> Path:
        """The checkpoint that a cell measures."""
        if cell.start != "recovered" or cell.row.name == "base":
            return checkpoint(self.setup, cell.row, cell.start)
        start = checkpoint(self.setup, cell.row, "compensated")
        out = start.with_name(start.name.removesuffix("-compensated") + "-recovered")
        if not (out / "config.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            tracenas.recover(
                start,
                method="distill",
                teacher=self.args.model,
                data=self.args.data,
                out=out,
                max_steps=self.args.steps,
                seq_len=self.args.seq_len,
                global_batch=self.args.batch,
                learning_rate=self.args.learning_rate,
                save_every=self.args.steps,
                seed=self.args.seed,
            )
        return out

    def measure(self, cell: Cell) -> dict[str, Any]:
        """What a cell holds."""
        path = str(self.path(cell))
        what, _, text = cell.what.partition(" ")
        if what == "perplexity":
            windows = {"seq_len": self.args.seq_len, "max_windows": self.args.eval_windows}
            found: dict[str, Any] = tracenas.evaluate([path], text=self.texts[text], **windows).to_json()
            return {k: found[k] for k in ("nll", "perplexity", "tokens", "params")}
        if what == "speed":
            bench = tracenas.bench([self.args.model, path], prompt=512, new_tokens=32, trials=5, no_memory=True)
            return dict(bench.to_json()["models"][1]) | {"search_seconds": seconds_of(self.setup, cell.row)}
        found = tracenas.evaluate([path], tasks=TASKS, task_data=self.args.task_data, limit=self.args.limit).to_json()
        return {k: found[k] for k in ("tasks", "limit")}

    def fill(self) -> None:
        """Measure what is missing."""
        missing = (cell for cell in self.wanted() if cell.key() not in self.cells)
        for cell in itertools.islice(missing, self.args.limit_cells):
            started = time.perf_counter()
            record = {"cell": cell.key(), **self.measure(cell), "seconds": time.perf_counter() - started, **facts()}
            self.journal.append(record)
            self.cells[cell.key()] = record
            print(cell.key(), json.dumps({k: record[k] for k in ("nll", "perplexity") if k in record}), flush=True)

    def rows(self) -> list[dict[str, Any]]:
        """One object per row, with the cells that are there."""
        return [self._row(row) for row in rows_of(self.args.budgets, self.args.randoms)]

    def _row(self, row: Row) -> dict[str, Any]:
        out: dict[str, Any] = {"row": row.name, "budget": row.params or "100%"}
        for start, text in itertools.product(STARTS, self.texts):
            found = self.cells.get(Cell(row, start, f"perplexity {text}").key())
            if found is not None:
                out["params"] = found["params"]
                out[f"{text}, {start}"] = round(found["perplexity"], 3) if found["perplexity"] else None
        if (speed := self.cells.get(Cell(row, "compensated", "speed").key())) is not None:
            out |= {k: speed[k]["median"] for k in ("prefill_speedup", "decode_speedup")}
            out["search_seconds"] = speed["search_seconds"]
        for start in ("plain", "recovered"):
            if (tasks := self.cells.get(Cell(row, start, "tasks").key())) is not None:
                out["tasks"] = tasks["tasks"]
        return out


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", nargs="+", required=True, metavar="NAME=TEXT")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["75%", "85%", "60%"])
    parser.add_argument("--randoms", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="of recovery")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step of recovery")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--eval-windows", type=int, default=24)
    parser.add_argument("--task-data", type=Path)
    parser.add_argument("--limit", type=int, default=200, help="questions per task")
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-cells", type=int, help="stop after so many new cells")
    parser.add_argument("--out")
    args = parser.parse_args()
    table = Reference(args)
    table.fill()
    trained = args.steps * args.batch * args.seq_len
    settings = {"recovery_tokens": trained, "samples": args.samples, "seq_len": args.seq_len, "seed": args.seed}
    publish({"benchmark": "reference", "machine": facts(), "settings": settings, "table": table.rows()}, args.out)


if __name__ == "__main__":
    main()
