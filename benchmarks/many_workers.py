"""Many workers whose evaluations are sleeps of measured lengths: how near a search comes to keeping all of them busy.

    python benchmarks/many_workers.py RUN [--workers 64] [--populations 64,128,256] [--evaluations 768] [--out FILE]

RUN is a finished guided search of one process with a sensitivity table; it says how long its candidates took, those of
generation 0 and the later ones, which race, apart. The search runs anew with wider generations: strategy, pool, pipes
and journal are those of a search, a worker sleeps as long as one of RUN's candidates took (drawn by candidate), and the
score is what the table says, with noise. `share of the ideal` is the sum of the sleeps / workers / wall time; `without
asking` is what it would be if the strategy's own work took no time.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import facts, publish
from sleeping import TARGET, scored, tasks_of

from tracenas.commands.search.conclusion import Searched
from tracenas.config import SearchConfig
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.resume import resolved_settings
from tracenas.pipeline.run_directory import JOURNAL
from tracenas.saliency.allocation.solver import predicted_rises
from tracenas.space.architecture import Architecture
from tracenas.strategies import run_search
from tracenas.strategies.score import Score
from tracenas.strategies.tabled import Tabled
from tracenas.worker_pool import WorkerPool

_NOISE = 0.01
"""Standard deviation of a simulated score, nats."""


class Simulated:
    """`evaluate(candidates)` by sleeping workers."""

    def __init__(self, run: Path, searched: Searched, pool: WorkerPool) -> None:
        records = Journal(run / JOURNAL).read()
        assert searched.ranked is not None, f"{run}: a search without a sensitivity table"
        self.pool = pool
        self.first = [r["seconds"] for r in records if r["generation"] == 0]
        self.later = [r["seconds"] for r in records if r["generation"] > 0]
        self.table = Tabled(searched.space, predicted_rises(searched.ranked))
        self.slept = 0.0
        self.inside = 0.0
        self._lengths = self.first

    def on_generation(self, elites: Sequence[Any], _: Sequence[Any]) -> None:
        """Generations after the first take as long as RUN's did."""
        self._lengths = self.later if elites else self.first

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """As they come."""
        started = time.perf_counter()
        draws = [random.Random(candidate.id) for candidate in candidates]
        seconds = [draw.choice(self._lengths) for draw in draws]
        scores = [self.table.expected(c) + draw.gauss(0, _NOISE) for c, draw in zip(candidates, draws, strict=True)]
        self.slept += sum(seconds)
        yield from scored(self.pool, tasks_of(candidates, seconds, scores))
        self.inside += time.perf_counter() - started


def simulated(args: argparse.Namespace, population: int) -> dict[str, Any]:
    """One search."""
    settings = {k: v for k, v in resolved_settings(args.run, SearchConfig).items() if k in SearchConfig.model_fields}
    sizes = {"population": population, "elites": population // 3, "evaluations": args.evaluations, "patience": 0}
    config = SearchConfig(**{**settings, **sizes, "iterations": args.evaluations, "out": args.run})
    searched = Searched.stored(resolve_budgets(open_source(config.model), config, args.run), config)
    assert searched is not None, f"{args.run}: not finished"
    strategy = searched.strategy(config)
    with tempfile.TemporaryDirectory() as directory, WorkerPool(TARGET, None, args.workers) as pool:
        evaluate = Simulated(args.run, searched, pool)
        list(scored(pool, [{"seconds": 2.0, "score": 0.0}] * args.workers))  # until all have begun
        started = time.perf_counter()
        journal = Journal(Path(directory) / JOURNAL)
        result = run_search(strategy, evaluate, journal, on_generation=evaluate.on_generation)
        wall = time.perf_counter() - started
    candidates, ideal = len(result.records), evaluate.slept / args.workers
    return {
        "candidates": candidates,
        "generations": len(result.generations),
        "mean sleep, seconds": round(evaluate.slept / candidates, 3),
        "wall, seconds": round(wall, 2),
        "strategy, ms per candidate": round(1000 * (wall - evaluate.inside) / candidates, 1),
        "share of the ideal": round(ideal / wall, 3),
        "without asking": round(ideal / evaluate.inside, 3),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--populations", default="64,128,256")
    parser.add_argument("--evaluations", type=int, default=768)
    parser.add_argument("--out")
    args = parser.parse_args()
    found = {number: simulated(args, int(number)) for number in args.populations.split(",")}
    shown = {"workers": args.workers, "cores": os.cpu_count(), "machine": facts()}
    publish({"benchmark": "many_workers", **shown, "by population": found}, args.out)


if __name__ == "__main__":
    main()
