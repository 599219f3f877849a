"""Perplexity right after unstructured pruning, by metric, sparsity and calibration seed; resumable.

    python benchmarks/pruner_zero_table.py --model babyllama=DIR --data TEXT --eval-text TEXT \
        [--found found=RUN] [--seeds 0 1 2] [--sparsity 0.5 2:4] --rows ROWS.jsonl [--out FILE]

Every row is pruned as `tracenas sparsify` does it (block by block, comparison as the metric's authors chose it, row
for expressions) and appended to ROWS.jsonl; rows that are there already are not computed again. `--found NAME=RUN`
adds a metric: a metric search's run directory, a JSON file or an expression. Perplexities are means over the seeds;
`ratio` is to magnitude in the same run.
"""

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cells import Cells
from machine import facts, publish

from tracenas.commands.metric.fitness import copied_weights
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.functionals.perplexity import perplexity
from tracenas.pipeline.calibration import calibration_tokens, held_out
from tracenas.saliency.gradients import GradientStore, write_gradients
from tracenas.saliency.layerwise import SparsityPlan
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.sparsify import sparsify_model
from tracenas.symbolic.names import find_metric

METRICS = ("magnitude", "wanda", "gblm", "pruner_zero", "sparsegpt", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="NAME=DIR")
    parser.add_argument("--data", required=True, help="calibration text")
    parser.add_argument("--eval-text", required=True)
    parser.add_argument("--found", nargs="*", default=[], help="NAME=RUN, NAME=FILE or NAME=EXPRESSION")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sparsity", nargs="+", default=["0.5", "2:4"])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--eval-windows", type=int, default=None)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = dict(text.split("=", 1) for text in args.found)
    cells = Cells(args.rows, ("model", "metric", "sparsity", "seed"))
    name, path = args.model.split("=", 1)
    loaded = load(path)
    windows = held_out(loaded, args.eval_text, args.seq_len, args.eval_windows)
    batch = max(1, 4096 // args.seq_len)
    for row in measure(loaded, name, windows, batch, found, args, cells):
        cells.append(row)
        print(row, flush=True)
    result = {
        "benchmark": "pruner_zero_table",
        "machine": facts(),
        "model": name,
        "windows": list(windows.shape),
        "calibration": [args.samples, args.seq_len],
        "table": table(cells.where(model=name)),
        "rows": cells.where(),
    }
    publish(result, args.out)


def measure(
    loaded: LoadedModel,
    name: str,
    windows: torch.Tensor,
    batch: int,
    found: dict[str, str],
    args: argparse.Namespace,
    cells: Cells,
) -> Iterator[dict[str, Any]]:
    """Rows that are missing, seed by seed; the base first."""
    base = {"model": name, "metric": "dense", "sparsity": "0", "seed": 0}
    if base not in cells:
        yield {**base, "nll": perplexity(loaded.model, windows, batch).nll}
    named = {**{m: m for m in METRICS}, **found}
    blocks = loaded.blocks()
    for seed in args.seeds:
        wanted = ({"model": name, "metric": m, "sparsity": s, "seed": seed} for m in named for s in args.sparsity)
        missing = [(cell["metric"], cell["sparsity"]) for cell in wanted if cell not in cells]
        if not missing:
            continue
        tokens = calibration_tokens(
            loaded, args.data, samples=args.samples, seq_len=args.seq_len, seed=seed, text_field=None, longest=2048
        )
        file = args.rows.with_name(f"{args.rows.stem}.{name}.{seed}.gradients.safetensors")
        store = (
            GradientStore(file)
            if file.is_file()
            else write_gradients(loaded.model, blocks, tokens, file, micro_batch=batch)
        )
        for metric_name, sparsity in missing:
            metric, _ = find_metric(named[metric_name])
            target = Sparsity.parse(sparsity)
            plan = SparsityPlan(metric, target, "row" if target.m else metric.compare, seed=seed)
            started = time.perf_counter()
            with copied_weights(loaded.model, blocks):
                counts = sparsify_model(loaded.model, blocks, tokens, plan, micro_batch=batch, gradients=store)
                seconds = time.perf_counter() - started
                nll = perplexity(loaded.model, windows, batch).nll
            zeros = sum(c.zeros for c in counts) / sum(c.rows * c.columns for c in counts)
            yield {
                "model": name,
                "metric": metric_name,
                "expression": metric.name,
                "sparsity": sparsity,
                "seed": seed,
                "nll": nll,
                "zeros": round(zeros, 5),
                "seconds": round(seconds, 2),
            }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range of the perplexity over the seeds, per metric and sparsity."""
    out = []
    for sparsity in dict.fromkeys(r["sparsity"] for r in rows):
        groups: dict[str, list[float]] = {}
        for row in rows:
            if row["sparsity"] == sparsity:
                groups.setdefault(row["metric"], []).append(math.exp(row["nll"]))
        reference = sum(groups.get("magnitude", [math.nan])) / len(groups.get("magnitude", [1]))
        for metric, values in sorted(groups.items(), key=lambda g: sum(g[1]) / len(g[1])):
            mean = sum(values) / len(values)
            out.append(
                {
                    "sparsity": sparsity,
                    "metric": metric,
                    "perplexity": round(mean, 3),
                    "lowest": round(min(values), 3),
                    "highest": round(max(values), 3),
                    "ratio": round(mean / reference, 4) if math.isfinite(reference) else None,
                    "seeds": len(values),
                }
            )
    return out


if __name__ == "__main__":
    main()
