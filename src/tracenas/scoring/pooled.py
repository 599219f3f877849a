"""Scoring by several processes, each with the same super-network: scores in order, the same ones as by one process.

What a candidate is scored with depends on it and on its generation's bar alone: a task is the candidate, and the bar
that racing has in its generation.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

from tracenas.refits.realisation import CompensatedRealisation
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.racing import Bar
from tracenas.scoring.scorer import Scorer
from tracenas.shared_tensors import require_shared_memory
from tracenas.strategies.protocol import Candidate
from tracenas.strategies.score import Score
from tracenas.threads import set_threads
from tracenas.worker_pool import TaskPool, WorkerPool

__all__ = ["BUILD", "PooledScorer", "build", "local_pool", "serving"]

C = TypeVar("C", bound=Candidate)
BUILD = f"{__name__}:build"
"""What the processes of a `local_pool` are built by."""


class PooledScorer(Generic[C]):
    """`evaluate(list of candidates) -> Score…` by the workers of a pool.

    Args:
        scorer: what every worker has one of.
        pool: its workers evaluate by `serving`.
    """

    def __init__(self, scorer: Scorer[C], pool: TaskPool) -> None:
        self.scorer, self._pool = scorer, pool

    def on_generation(self, elites: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> None:
        """As the scorer's."""
        self.scorer.on_generation(elites, records)

    def __call__(self, candidates: Sequence[C]) -> Iterator[Score]:
        """One score per candidate, in order."""
        tasks = ({"candidate": candidate.to_json(), **self._raced(candidate)} for candidate in candidates)
        for answer in self._pool.map(tasks):
            yield Score(**answer["result"]) if "result" in answer else Score.failed(answer["error"])

    def _raced(self, candidate: C) -> dict[str, Any]:
        """What a task says of the candidate's bar."""
        bar = self.scorer.bar_of(cast(Any, candidate)) if isinstance(self.scorer, RacingEvaluator) else None
        return {} if bar is None else {"bar": [bar.losses, bar.variance]}


def local_pool(scorer: Scorer[Any], workers: int, threads: int) -> WorkerPool:
    """Processes of this machine; the scorer's tensors lie in memory that they share.

    Args:
        scorer: on the CPU.
        threads: of each.

    Raises:
        UserError: if the system's shared memory is too small for the tensors.
    """
    require_shared_memory(scorer, workers)
    return WorkerPool(BUILD, (scorer, threads, workers), workers)


def build(spec: tuple[Scorer[Any], int, int]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a process does with a task, from the scorer, the threads and the number of workers."""
    scorer, threads, workers = spec
    set_threads(threads)
    how = getattr(scorer, "realisation", None)
    if isinstance(how, CompensatedRealisation):
        how.forget(how.memo_bytes // workers)
    return serving(scorer)


def serving(scorer: Scorer[Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a worker answers to a task: the score as JSON."""

    def evaluate(task: dict[str, Any]) -> dict[str, Any]:
        if isinstance(scorer, RacingEvaluator):
            losses, variance = task.get("bar", (None, None))
            scorer.take(None if losses is None else Bar(tuple(losses), variance))
        score = scorer.score(scorer.decoded(task["candidate"]))
        return {name: getattr(score, name) for name in ("score", "loss", "seconds", "extra", "reason")}

    return evaluate
