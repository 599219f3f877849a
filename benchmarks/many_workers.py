"""Many workers whose evaluations are sleeps of measured lengths: how near a search comes to keeping all of them busy.

    python benchmarks/many_workers.py RUN [--workers 64] [--populations 64,128,256] [--evaluations 768] [--out FILE]

RUN is a finished guided search of one process with a sensitivity table; it says how long its candidates took, those of
generation 0 and the later ones, which race, apart. The search runs anew with wider generations: strategy, pool, pipes
and journal are those of a search, a worker sleeps as long as one of RUN's candidates took (drawn by candidate), and the
score is what the table says, with noise. `share of the ideal` is the sum of the sleeps / workers / wall time, from the
first ask to the last line of the journal. Workers import this file: torch is left to functions.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import facts, publish
from sleeping import TARGET, scored, task_of

from tracenas.journal import Journal
from tracenas.space.architecture import Architecture
from tracenas.strategies import run_search
from tracenas.strategies.score import Score
from tracenas.strategies.tabled import Tabled
from tracenas.worker_pool import WorkerPool

if TYPE_CHECKING:
    from tracenas.commands.search.conclusion import Searched
    from tracenas.config import SearchConfig

_NOISE = 0.01
"""Standard deviation of a simulated score, nats."""


class Simulated:
    """`evaluate(candidates)` by sleeping workers."""

    def __init__(self, run: Path, searched: "Searched", pool: WorkerPool, longer: float) -> None:
        from tracenas.saliency.allocation.solver import predicted_rises

        records = Journal(run / "journal.jsonl").read()
        assert searched.ranked is not None, f"{run}: a search without a sensitivity table"
        self.pool = pool
        self.first = [longer * r["seconds"] for r in records if r["generation"] == 0]
        self.later = [longer * r["seconds"] for r in records if r["generation"] > 0]
        self.table = Tabled(searched.space, predicted_rises(searched.ranked))
        self.slept = 0.0
        self._lengths = self.first

    def on_generation(self, elites: Sequence[Any], _: Sequence[Any]) -> None:
        """Generations after the first take as long as RUN's did."""
        self._lengths = self.later if elites else self.first

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """As they come."""
        return scored(self.pool, (self._task(candidate) for candidate in candidates))

    def _task(self, candidate: Architecture) -> dict[str, Any]:
        draw = random.Random(candidate.id)
        seconds = draw.choice(self._lengths)
        self.slept += seconds
        return task_of(candidate, seconds, self.table.expected(candidate) + draw.gauss(0, _NOISE))


def reopened(args: argparse.Namespace, population: int) -> "tuple[SearchConfig, Searched]":
    """RUN's search with another population."""
    from tracenas.commands.search.conclusion import Searched
    from tracenas.config import SearchConfig
    from tracenas.models.checkpoints.source import open_source
    from tracenas.pipeline.budgets import resolve_budgets
    from tracenas.pipeline.resume import resolved_settings

    settings = {k: v for k, v in resolved_settings(args.run, SearchConfig).items() if k in SearchConfig.model_fields}
    sizes = {"population": population, "elites": population // 3, "evaluations": args.evaluations, "patience": 0}
    config = SearchConfig(**{**settings, **sizes, "iterations": args.evaluations, "out": args.run})
    searched = Searched.stored(resolve_budgets(open_source(config.model), config, args.run), config)
    assert searched is not None, f"{args.run}: not finished"
    return config, searched


def simulated(args: argparse.Namespace, population: int) -> dict[str, Any]:
    """One search."""
    config, searched = reopened(args, population)
    strategy = searched.strategy(config)
    with tempfile.TemporaryDirectory() as directory, WorkerPool(TARGET, None, args.workers) as pool:
        evaluate = Simulated(args.run, searched, pool, args.longer)
        list(scored(pool, [{"seconds": 2.0, "score": 0.0}] * args.workers))  # until all have begun
        started = time.perf_counter()
        journal = Journal(Path(directory) / "journal.jsonl")
        result = run_search(strategy, evaluate, journal, on_generation=evaluate.on_generation)
        wall = time.perf_counter() - started
    candidates, ideal = len(result.records), evaluate.slept / args.workers
    return {
        "candidates": candidates,
        "generations": len(result.generations),
        "mean sleep, seconds": round(evaluate.slept / candidates, 3),
        "wall, seconds": round(wall, 2),
        "strategy, ms per candidate": round(1000 * (result.seconds - result.evaluation_seconds) / candidates, 1),
        "share of the ideal": round(ideal / wall, 3),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--populations", default="64,128,256")
    parser.add_argument("--evaluations", type=int, default=768)
    parser.add_argument("--longer", type=float, default=1.0, help="times RUN's seconds: as with so many times its text")
    parser.add_argument("--out")
    args = parser.parse_args()
    found = {number: simulated(args, int(number)) for number in args.populations.split(",")}
    shown = {"workers": args.workers, "times RUN's seconds": args.longer, "machine": facts()}
    publish({"benchmark": "many_workers", **shown, "by population": found}, args.out)


if __name__ == "__main__":
    main()
