"""Tasks by shared contexts and a head at continuations only, against lm-eval's own log-likelihoods.

    python benchmarks/harness_tasks.py MODEL TASKDATA [--tasks piqa,arc_easy:2] [--limit 20] [--clock cpu] [--out FILE]

Prints JSON, a row per task: seconds of both, their ratio and every metric of both, which should be the same. Both run
through `Harness`, one after the other on each task; reading the tasks and loading the model are not timed, making
the prompts is.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from machine import CLOCKS, facts, publish

from tracenas.evaluation import language_model
from tracenas.evaluation.harness import Harness
from tracenas.evaluation.likelihood import Capability, capability
from tracenas.evaluation.suites import requests
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source


def row(name: str, data: Path, loaded: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One task by both."""
    harness = Harness(requests(name, None, None), data)
    clock = CLOCKS[options.clock]
    seconds, metrics = {}, {}
    for who, able in (("lm_eval", lambda model: Capability(selects=False, room=0)), ("tracenas", capability)):
        language_model.capability = able  # type: ignore[attr-defined]
        started = clock()
        found = harness.run(loaded.model, loaded.tokenizer, limit=options.limit, batch_size=options.batch_size)
        seconds[who] = round(clock() - started, 3)
        metrics[who] = dict(next(iter(found.values())).metrics)
    return {
        "task": name,
        "seconds": seconds,
        "speedup": round(seconds["lm_eval"] / seconds["tracenas"], 3),
        "same": metrics["lm_eval"] == metrics["tracenas"],
        "metrics": metrics,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", default="arc_easy,piqa,sciq,hellaswag,winogrande")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load(open_source(options.model), device="cpu", dtype="fp32")
    capability(loaded.model)  # warm
    rows = [row(name, options.data, loaded, options) for name in options.tasks.split(",")]
    total = {who: round(sum(r["seconds"][who] for r in rows), 3) for who in ("lm_eval", "tracenas")}
    result: dict[str, Any] = {
        "benchmark": "tasks through lm-eval",
        "baseline": "lm-eval's own log-likelihoods in the same run",
        "machine": facts(),
        "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "limit": options.limit,
        "batch_size": options.batch_size,
        "clock": options.clock,
        "rows": rows,
        "seconds": total,
        "speedup": round(total["lm_eval"] / total["tracenas"], 3),
        "same": all(r["same"] for r in rows),
    }
    publish(result, options.out)
    return 0 if result["same"] else 1


if __name__ == "__main__":
    sys.exit(main())
