"""The reference table: every way to reach a budget that exists here, on one model, with the same text and training.

    python benchmarks/reference/run.py MODEL --data TEXT --eval-text NAME=TEXT [NAME=TEXT …] --work DIR --journal FILE
        [--budgets 75% 85% 60%] [--steps 40] [--task-data DIR] [--rows NAME …] [--what perplexity tasks speed]
        [--limit-cells N] [--out FILE.json] [--into DOC.md …]

Rows: base, uniform, TraceNAS with the recommended proxy and with Φ as published; TraceNAS and uniform with units
ranked by OBS, one-shot methods (ShortGPT removes depth only), random ones; at the budgets after the first, only
uniform, recommended and Φ. Measured: perplexity right after pruning, after compensation and after equal recovery
(distillation from the base, from the compensated start), tasks, speed, search time. Every cell is a line of the
journal: start it again and it goes on with the next cell, also on another machine (checkpoints that are not there are
made again). Row by row, the first budget first; `--limit-cells 0` makes the table of what is there; `--rows` and
`--what` measure some rows or some columns only (the speed while nothing else runs, say). With `--out`, a Markdown
table is written beside the JSON; `--into` puts it between the markers of documents (`MAIN`: the first table, `ALL`:
everything). On a CPU it is hours.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from cells import Cells, model_name, pairs, perplexity
from family_table import with_table
from machine import facts, publish
from rows import STARTS, Row, Setup, checkpoint, rows_of, seconds_of
from table import answers, quality

import tracenas

MAIN = "<!-- reference, main table: made by benchmarks/reference/run.py -->"
ALL = "<!-- reference: made by benchmarks/reference/run.py -->"
END = "<!-- end of reference -->"
KINDS = ("perplexity", "tasks", "speed")
FIELDS = ("model", "row", "budget", "start", "what")
SPEED = ("params", "ttft_ms", "tpot_ms", "prefill_speedup", "decode_speedup", "prefill_flop_ratio")


class Reference:
    """The table of one model."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, model_name(args.model)
        self.texts: dict[str, str] = dict(pair.split("=", 1) for pair in args.eval_text)
        recovery = {
            "max_steps": args.steps,
            "global_batch": args.batch,
            "learning_rate": args.learning_rate,
        }
        compensation = {"compensate_samples": args.compensate_samples, "ridge": args.ridge}
        given = {k: getattr(args, k) for k in ("model", "data", "work", "seed", "samples", "seq_len", "dtype")}
        self.setup = Setup(**given, recovery=recovery, compensation=compensation, search=pairs(args.search))
        self.settings = {
            "data": Path(args.data).name,
            "texts": {name: Path(text).name for name, text in self.texts.items()},
            **{k: getattr(args, k) for k in ("seed", "samples", "seq_len", "dtype", "eval_windows", "tasks", "limit")},
            **{k: getattr(args, k) for k in ("prompt", "new_tokens", "trials")},
            "recovery": {**recovery, "method": "distill", "tokens": args.steps * args.batch * args.seq_len},
            "compensation": {**compensation, "method": "sequential"},
            "search": self.setup.search,
        }
        names = list(dict.fromkeys(row.name for row in self.rows()))
        self.asked: list[str] = names if args.rows is None else args.rows
        if unknown := [name for name in self.asked if name not in names]:
            raise SystemExit(f"--rows '{unknown[0]}': no such row; accepted: {', '.join(names)}")
        self.cells = Cells(args.journal, FIELDS)
        for record in self.cells.where(model=self.name):
            for key, value in self.settings.items():
                if (found := record["settings"].get(key)) != value:
                    known = json.dumps(found)
                    raise SystemExit(f"{args.journal} was measured with {key} {known}, not {json.dumps(value)}")

    def rows(self) -> list[Row]:
        """The lines of the table, in order."""
        budgets = self.args.budgets
        of = [rows_of(b, first=i == 0, randoms=self.args.randoms) for i, b in enumerate(budgets)]
        return [Row("base"), *itertools.chain.from_iterable(of)]

    def wanted(self) -> Iterator[dict[str, Any]]:
        """The cells asked for, row by row: a row's checkpoints are made once, and a stopped table has whole rows."""
        for cell in self._all():
            if cell["row"] in self.asked and cell["what"].partition(" ")[0] in self.args.what:
                yield cell

    def _all(self) -> Iterator[dict[str, Any]]:
        texts = [f"perplexity {text}" for text in self.texts]
        tasks = ["tasks"] if self.args.task_data is not None else []
        for row in self.rows():
            is_base = row.name == "base"
            for start in STARTS[:1] if is_base else STARTS:
                yield from (self.cell(row, start, what) for what in texts)
            if not is_base:
                yield self.cell(row, "compensated", "speed")
            yield from (self.cell(row, "plain" if is_base else "recovered", what) for what in tasks)

    def cell(self, row: Row, start: str, what: str) -> dict[str, Any]:
        """What tells a cell from the others."""
        return {"model": self.name, "row": row.name, "budget": row.budget, "start": start, "what": what}

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell holds; `seconds` with the making of its checkpoint."""
        started = time.perf_counter()
        row = Row(cell["row"], cell["budget"])
        path = str(checkpoint(self.setup, row, cell["start"]))
        found = self._measured(row, path, cell["what"])
        return {**found, "seconds": round(time.perf_counter() - started, 2), "settings": self.settings, **facts()}

    def _measured(self, row: Row, path: str, what: str) -> dict[str, Any]:
        kind, _, text = what.partition(" ")
        args, dtype = self.args, self.setup.dtype
        if kind == "perplexity":
            return perplexity(path, self.texts[text], args.seq_len, args.eval_windows, dtype=dtype)
        if kind == "speed":
            how = {k: getattr(args, k) for k in ("prompt", "new_tokens", "trials")}
            found = tracenas.bench([args.model, path], no_memory=True, dtype=dtype, **how).to_json()["models"][1]
            return {**{k: found[k] for k in SPEED}, "search_seconds": seconds_of(self.setup, row)}
        asked = {"tasks": args.tasks, "task_data": args.task_data, "limit": args.limit}
        return {"tasks": tracenas.evaluate([path], dtype=dtype, **asked).to_json()["tasks"]}

    def table(self) -> list[dict[str, Any]]:
        """One object per row, with the cells that are there."""
        return [self._row(row) for row in self.rows()]

    def _row(self, row: Row) -> dict[str, Any]:
        out: dict[str, Any] = {"row": row.name, "budget": row.budget}
        for start, text in itertools.product(STARTS, self.texts):
            if (found := self.cells.get(self.cell(row, start, f"perplexity {text}"))) is not None:
                out["params"] = found["parameters"]
                out[f"{text}, {start}"] = None if found["perplexity"] is None else round(found["perplexity"], 3)
        if (speed := self.cells.get(self.cell(row, "compensated", "speed"))) is not None:
            out |= {k: round(speed[k]["median"], 3) for k in ("prefill_speedup", "decode_speedup")}
            out["search_seconds"] = speed["search_seconds"]
        for start in ("plain", "recovered"):
            if (tasks := self.cells.get(self.cell(row, start, "tasks"))) is not None:
                out["tasks"] = tasks["tasks"]
        return out

    def markdown(self) -> list[str]:
        """The table for people, that of the tasks if any were asked, notes."""
        rows = self.table()
        columns = [f"{text}, {start}" for text, start in itertools.product(self.texts, STARTS)]
        tables = [quality(rows, columns), *([answers(rows)] if any("tasks" in row for row in rows) else [])]
        return [*(table.markdown() for table in tables), *self._notes()]

    def _notes(self) -> tuple[str, ...]:
        s = self.settings
        tasks = f" Accuracies: {s['tasks']}, {s['limit']} questions each, after recovery, ± standard errors."
        return (
            f"{self.name}, {s['dtype']}. Perplexities: {s['eval_windows']} windows of {s['seq_len']} tokens. "
            f"Recovered: distilled for {s['recovery']['max_steps']} steps, {s['recovery']['tokens']:,} tokens."
            + (tasks if self.args.task_data is not None else ""),
            *(f"{kind}: {'; '.join(where)}." for kind, where in self.machines().items()),
        )

    def machines(self) -> dict[str, list[str]]:
        """Where the cells of each kind were measured."""
        found: dict[str, list[str]] = {}
        for record in self.cells.where(model=self.name):
            where = f"{record['cpu']}, threads {record['threads']}, torch {record['torch']}, {record['date']}"
            known = found.setdefault(record["what"].partition(" ")[0], [])
            if where not in known:
                known.append(where)
        return found


def put(document: Path, tables: dict[str, str]) -> None:
    """Write the tables behind their markers, those that the document has."""
    text = document.read_text(encoding="utf-8")
    present = [marker for marker in tables if marker in text]
    if not present:
        raise SystemExit(f"--into {document}: expected one of the lines {', '.join(tables)}")
    for marker in present:
        text = with_table(text, tables[marker], marker, END)
    document.write_text(text, encoding="utf-8")


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-text", nargs="+", required=True, metavar="NAME=TEXT")
    parser.add_argument("--work", type=Path, required=True, help="directory of the runs and checkpoints")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["75%", "85%", "60%"])
    parser.add_argument("--randoms", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8, help="calibration sequences")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", default="fp32", help="of everything; recovery keeps fp32 weights")
    parser.add_argument("--compensate-samples", type=int, default=48)
    parser.add_argument("--ridge", type=float, default=0.01, help="of the refit: one value instead of a grid")
    parser.add_argument("--steps", type=int, default=40, help="of recovery")
    parser.add_argument("--batch", type=int, default=1, help="sequences per step of recovery")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--eval-windows", type=int, default=24)
    parser.add_argument("--task-data", type=Path)
    parser.add_argument("--tasks", default="arc_easy,piqa,sciq,hellaswag,winogrande")
    parser.add_argument("--limit", type=int, default=200, help="questions per task")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt whose speed is measured")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--search", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="measure only these rows")
    parser.add_argument("--what", nargs="+", choices=KINDS, default=KINDS, help="measure only such cells")
    parser.add_argument("--limit-cells", type=int, help="stop after so many new cells")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--into", type=Path, nargs="+", default=[], metavar="DOC.md", help="put the table there")
    return parser.parse_args()


def main() -> None:
    """Run and print."""
    args = arguments()
    reference = Reference(args)
    args.work.mkdir(parents=True, exist_ok=True)
    reference.cells.fill(reference.wanted(), reference.measure, args.limit_cells)
    result = {
        "benchmark": "reference",
        "model": reference.name,
        "machines": reference.machines(),
        "settings": reference.settings,
    }
    publish({**result, "table": reference.table()}, args.out)
    parts = reference.markdown()
    whole = "\n\n".join(parts)
    print(whole)
    if args.out is not None:
        args.out.with_suffix(".md").write_text(whole + "\n", encoding="utf-8")
    for document in args.into:
        put(document, {MAIN: parts[0], ALL: whole})


if __name__ == "__main__":
    main()
