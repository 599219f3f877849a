"""What a budget of milliseconds finds beside a budget of parameters and equal ratios, at one decode latency.

    python benchmarks/equal_latency.py MODEL --data TEXT --latency TABLE --eval NAME=TEXT [--eval …] --work DIR
        --journal FILE.jsonl [--share 70%] [--compensate sequential] [--seeds 0 1 2] [--windows 16] [--seq-len 512]
        [--dtype bf16] [--threads 1]
    … the same … --bench --llama-python PYTHON [--bench-threads 2] [--trials 20] --out FILE.json

For every seed one sensitivity table (DIR/table-SEED.safetensors, measured where it is missing), and of it three models
by `tracenas prune --method fisher`, refitted alike (`--compensate`, without scales unless it is `best`):
- `latency`: the least predicted rise of the loss at `--share` of the base's decode latency by the latency table;
- `params`: the least at the largest number of parameters that is not slower than that by the table;
- `uniform`: equal ratios of the same decode latency by the table.
Losses are of the first windows of every text, not overlapping, without special tokens; differences are paired over
windows. With `--bench` those that are there take turns with the base in llama.cpp (alone on the machine, please), and
the result is written. Every cell is a line of the journal: start the command again and it goes on.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cells, model_name
from machine import facts, publish

import tracenas
from tracenas.config import PruneConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs, resolve_budgets
from tracenas.pipeline.method import resolve_method
from tracenas.pipeline.rises import ranked_by_table
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.allocation.solver import predicted_rise
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.space.architecture import Architecture

ROWS = ("latency", "params", "uniform")
OUTTYPE = "q8_0"
FIELDS = ("model", "seed", "row", "what")
STEPS = 20
"""Halvings of the range of parameters."""


def largest(lower: int, upper: int, meets: Callable[[int], bool], steps: int = STEPS) -> int:
    """The largest number between two that meets something, by halving: `lower` does, and so does whatever is below."""
    for _ in range(steps):
        if upper - lower <= 1:
            break
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if meets(middle) else (lower, middle)
    return lower


class Planned:
    """Which models are compared: the budgets of three architectures of equal predicted latency, without torch.

    Args:
        table: of the seed.
    """

    def __init__(self, args: argparse.Namespace, table: Path) -> None:
        self.args, self.source = args, open_source(args.model)
        self._timed = {"latency": args.latency, "outtype": OUTTYPE, "latency_anyway": args.latency_anyway}
        self._table = SensitivityTable.read(table)
        self._costs = Costs.of(resolve_budgets(self.source, self._config({})), self._config({}))

    def settings(self) -> dict[str, dict[str, Any]]:
        """By row: what `tracenas.prune` is told of its budget."""
        timed = self._timed
        given: dict[str, dict[str, Any]] = {"latency": {"budget": {"decode_ms": self.args.share}, **timed}}
        arch = self.architecture(given["latency"])
        reached, parameters = self._costs.exactly("decode_ms", arch), self._costs.exactly("params", arch)

        def meets(count: int) -> bool:
            return self._costs.exactly("decode_ms", self.architecture({"params": str(count)})) <= reached

        whole = self._costs.exactly("params", self._costs.space.base)
        count = largest(parameters // 2, whole, meets)
        given["params"] = {"params": str(count)}
        # what a uniform architecture can reach is coarser: the largest that the window of this limit holds
        given["uniform"] = {"budget": {"decode_ms": f"{reached / 1e6:.6f}ms"}, **timed, "allocation": "uniform"}
        return given

    def about(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is known of an architecture beforehand."""
        arch = self.architecture(given)
        names = ("params", "prefill_ms", "decode_ms")
        base = self._costs.all(self._costs.space.base, names)
        return {
            "architecture": arch.to_json(),
            "blocks": sum(not layer.skip for layer in arch.layers),
            "predicted_rise": predicted_rise(self._ranked(given), arch),
            "shares": {name: cost / base[name] for name, cost in self._costs.all(arch, names).items()},
        }

    def architecture(self, given: Mapping[str, Any]) -> Architecture:
        """That `tracenas prune` makes of these settings."""
        return ALLOCATIONS.get(given.get("allocation", "solver"))(self._ranked(given), None).architecture

    def _ranked(self, given: Mapping[str, Any]) -> Any:
        return ranked_by_table(resolve_budgets(self.source, self._config(given)), self._table)

    def _config(self, given: Mapping[str, Any]) -> PruneConfig:
        chosen = given or {"params": "90%"}
        config = PruneConfig(
            model=self.args.model, data=self.args.data, out=Path("unused"), method="fisher", **{**self._timed, **chosen}
        )
        return resolve_method(config)


class Measurement:
    """The cells of all seeds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.name = args, model_name(args.model)
        self.cells = Cells(args.journal, FIELDS)
        args.work.mkdir(parents=True, exist_ok=True)

    def wanted(self) -> list[dict[str, Any]]:
        """Losses of the base and of all models, or benches of all models of a seed."""
        of = [("all", "bench")] if self.args.bench else [(row, "losses") for row in ("dense", *ROWS)]
        return [
            dict(zip(FIELDS, (self.name, seed, row, what), strict=True)) for seed in self.args.seeds for row, what in of
        ]

    def measure(self, cell: dict[str, Any]) -> dict[str, Any]:
        """What a cell holds."""
        if cell["what"] == "bench":
            return self._bench(cell["seed"])
        if cell["row"] == "dense":
            return {"losses": self._losses(self.args.model), **facts()}
        planned = Planned(self.args, self._table(cell["seed"]))
        given = planned.settings()[cell["row"]]
        out, begun = self._checkpoint(cell["seed"], cell["row"]), time.process_time()
        if not (out / "config.json").is_file():
            tracenas.prune(
                self.args.model,
                out=out,
                method="fisher",
                data=self.args.data,
                sensitivity=self._table(cell["seed"]),
                seed=cell["seed"],
                dtype=self.args.dtype,
                threads=self.args.threads,
                compensate=self.args.compensate,
                **given,
            )
        cost = round(time.process_time() - begun, 1)
        told = {key: str(value) for key, value in given.items() if key != "latency"}
        return {**planned.about(given), "settings": told, "prune": cost, "losses": self._losses(out), **facts()}

    def _table(self, seed: int) -> Path:
        path: Path = self.args.work / f"table-{seed}.safetensors"
        if not path.is_file():
            how = {"seed": seed, "dtype": self.args.dtype, "threads": self.args.threads}
            tracenas.sensitivity(self.args.model, data=self.args.data, out=path, **how)
        return path

    def _checkpoint(self, seed: int, row: str) -> Path:
        path: Path = self.args.work / f"{row}-{seed}"
        return path

    def _losses(self, model: str | Path) -> dict[str, list[float]]:
        from closed_form import losses
        from strategies import texts

        loaded = tracenas.load(model, device="cpu", dtype=self.args.dtype)
        return losses(loaded.model, texts(loaded.tokenizer, self.args.eval, self.args.windows, self.args.seq_len))

    def _bench(self, seed: int) -> dict[str, Any]:
        """The base and the three models in turns."""
        models = [Path(self.args.model), *(self._checkpoint(seed, row) for row in ROWS)]
        point = json.loads(self.args.latency.read_text())["points"][0]
        found = tracenas.bench(
            models,
            backend="llama.cpp",
            outtype=OUTTYPE,
            llama_python=self.args.llama_python,
            prompt=point["prompt"],
            new_tokens=self.args.new_tokens,
            trials=self.args.trials,
            threads=self.args.bench_threads,
        ).to_json()
        named = zip(("base", *ROWS), found["models"], strict=True)
        return {"measured": {row: {**one, "model": row} for row, one in named}, "setting": found["setting"], **facts()}


def compared(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By text: perplexities by seed, and the lead of `latency` in nats per token over the others.

    A lead is the mean over seeds of the paired difference: by seed, its standard deviation over seeds, and the standard
    error over windows of the mean over seeds. Beside it, medians over seeds of what was predicted and measured.
    """
    import numpy as np

    lines = {(r["row"], r["seed"]): r for r in records if r["what"] == "losses"}
    seeds = [s for s in sorted({seed for _, seed in lines}) if all((row, s) in lines for row in ROWS)]
    table: dict[str, Any] = {"seeds": seeds}
    for text in lines["latency", seeds[0]]["losses"] if seeds else ():
        loss = {row: np.array([lines[row, s]["losses"][text] for s in seeds]) for row in ROWS}
        found = {row: [round(float(np.exp(x)), 2) for x in rows.mean(1)] for row, rows in loss.items()}
        leads = {}
        for row in ROWS[1:]:
            paired = loss["latency"] - loss[row]
            by_seed = paired.mean(1).tolist()
            windows = paired.mean(0)
            leads[row] = {
                "mean": round(float(windows.mean()), 4),
                "by seed": [round(lead, 4) for lead in by_seed],
                "spread of seeds": round(statistics.stdev(by_seed), 4) if len(seeds) > 1 else None,
                "standard error over windows": round(float(windows.std(ddof=1) / len(windows) ** 0.5), 4),
            }
        table[text] = {"perplexity by seed": found, "lead": leads}
    for key in ("params", "prefill_ms", "decode_ms"):
        table[f"predicted share, {key}"] = {
            row: [round(lines[row, s]["shares"][key], 4) for s in seeds] for row in ROWS
        }
    table["predicted rise"] = {row: [round(lines[row, s]["predicted_rise"], 4) for s in seeds] for row in ROWS}
    table["blocks"] = {row: [lines[row, s]["blocks"] for s in seeds] for row in ROWS}
    benches = {r["seed"]: r["measured"] for r in records if r["what"] == "bench"}
    for phase, key in (("prefill", "prefill_speedup"), ("decode", "decode_speedup")):
        table[f"measured share, {phase}"] = {
            row: [round(1 / benches[s][row][key]["median"], 4) for s in seeds if s in benches] for row in ROWS
        }
    return table


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--latency", type=Path, required=True, help="latency table of llama.cpp in q8_0")
    parser.add_argument("--latency-anyway", action="store_true", help="take the table of another machine")
    parser.add_argument("--eval", action="append", required=True, metavar="NAME=TEXT", help="held-out text")
    parser.add_argument("--work", type=Path, required=True, help="directory for tables and checkpoints")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--compensate", default="sequential", help="refit of all models")
    parser.add_argument("--share", default="70%", help="of the base's decode latency")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bench", action="store_true", help="measure latencies instead of losses")
    parser.add_argument("--llama-python", help="Python that has llama-cpp-python")
    parser.add_argument("--bench-threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--limit", type=int, help="stop after so many new cells")
    parser.add_argument("--out", help="write the comparison of all that is measured")
    return parser.parse_args()


def main() -> None:
    """Measure what is missing, then compare."""
    args = arguments()
    measurement = Measurement(args)
    measurement.cells.fill(measurement.wanted(), measurement.measure, args.limit)
    if args.out:
        kept = (
            "share",
            "latency_anyway",
            "compensate",
            "windows",
            "seq_len",
            "dtype",
            "threads",
            "bench_threads",
            "new_tokens",
            "trials",
        )
        settings = {name: getattr(args, name) for name in kept}
        record = {"benchmark": "equal_latency", "model": measurement.name, "machine": facts(), "settings": settings}
        found = measurement.cells.where(model=measurement.name)
        publish({**record, "compared": compared(found)}, args.out)


if __name__ == "__main__":
    main()
