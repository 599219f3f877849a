"""Scoring by several processes, each with the same super-network: scores in order, the same ones as by one process.

What a candidate is scored with depends on it and on its generation's bar alone: a task is an architecture, and the bar
that racing has in its generation.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.refits.realisation import CompensatedRealisation
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.racing import Bar
from tracenas.scoring.travelling import CandidateScorer, super_network
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score
from tracenas.threads import set_threads
from tracenas.worker_pool import TaskPool, WorkerPool

__all__ = ["PooledScorer", "build", "local_pool", "serving"]

_SHARED = Path("/dev/shm")
_LEFT = 1.1
"""Of shared memory, this times what the tensors take must be free."""


class PooledScorer:
    """`evaluate(list[Architecture]) -> Score…` by the workers of a pool.

    Args:
        scorer: what every worker has one of.
        pool: its workers evaluate by `serving`.
    """

    def __init__(self, scorer: CandidateScorer, pool: TaskPool) -> None:
        self.scorer, self._pool = scorer, pool

    def on_generation(self, elites: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> None:
        """As `RacingEvaluator`'s; without racing nothing."""
        if isinstance(self.scorer, RacingEvaluator):
            self.scorer.on_generation(elites, records)

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """One score per candidate, in order."""
        bar = self.scorer.bar if isinstance(self.scorer, RacingEvaluator) else None
        shared = {} if bar is None else {"bar": [bar.losses, bar.variance]}
        for answer in self._pool.map([{"arch": candidate.to_json(), **shared} for candidate in candidates]):
            yield Score(**answer["result"]) if "result" in answer else Score.failed(answer["error"])


def local_pool(scorer: CandidateScorer, workers: int, threads: int) -> WorkerPool:
    """Processes of this machine; the scorer's tensors lie in memory that they share.

    Args:
        scorer: on the CPU.
        threads: of each.

    Raises:
        UserError: if the system's shared memory is too small for the tensors.
    """
    _check_shared_memory(scorer, workers)
    return WorkerPool(f"{__name__}:build", (scorer, threads, workers), workers)


def build(spec: tuple[CandidateScorer, int, int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a process does with a task, from the scorer, the threads and the number of workers."""
    scorer, threads, workers = spec
    set_threads(threads)
    if isinstance(scorer.realisation, CompensatedRealisation):
        scorer.realisation.forget(scorer.realisation.memo_bytes // workers)
    return serving(scorer)


def serving(scorer: CandidateScorer) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a worker answers to a task: the score as JSON."""

    def evaluate(task: dict[str, Any]) -> dict[str, Any]:
        if isinstance(scorer, RacingEvaluator):
            losses, variance = task.get("bar", (None, None))
            scorer.bar = None if losses is None else Bar(tuple(losses), variance)
        score = scorer.score(scorer.space.validate(Architecture.from_json(task["arch"], where="task")))
        return {name: getattr(score, name) for name in ("score", "loss", "seconds", "extra", "reason")}

    return evaluate


def _check_shared_memory(scorer: CandidateScorer, workers: int) -> None:
    """Refuse before a process is ended by a bus error."""
    if not _SHARED.is_dir():
        return
    parameters = super_network(scorer).model.parameters()
    needed = sum(p.numel() * p.element_size() for p in parameters if not p.is_shared())
    if isinstance(scorer.realisation, CompensatedRealisation):
        needed += scorer.realisation.factor_bytes
    free = shutil.disk_usage(_SHARED).free
    if needed * _LEFT > free:
        raise UserError(
            f"workers {workers}: weights and factors take {needed / 2**20:,.0f} MiB of shared memory, and {_SHARED} "
            f"has {free / 2**20:,.0f} free; make it larger (docker run --shm-size) or take --workers 1"
        )
