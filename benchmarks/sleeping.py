"""Workers that sleep instead of scoring: what a task says of the seconds and the score is what comes of it."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score
from tracenas.worker_pool import TaskPool

__all__ = ["TARGET", "build", "scored", "task_of"]

TARGET = "sleeping:build"
"""What a pool's workers are built by."""


def build(_: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a worker does with a task; it imports no torch."""

    def evaluate(task: dict[str, Any]) -> dict[str, Any]:
        time.sleep(task["seconds"])
        score = task["score"]
        return {"score": score, "loss": -score, "seconds": task["seconds"], "extra": {"terms": []}, "reason": None}

    return evaluate


def task_of(candidate: Architecture, seconds: float, score: float, sequences: int = 8) -> dict[str, Any]:
    """As large as that of a search that races on so many sequences."""
    bar = [[3.0 + i / 7 for i in range(sequences)], 1 / 3]
    return {"candidate": candidate.to_json(), "bar": bar, "seconds": seconds, "score": score}


def scored(pool: TaskPool, tasks: Iterable[dict[str, Any]]) -> Iterator[Score]:
    """What becomes of the tasks, in order."""
    return (Score(**answer["result"]) for answer in pool.map(tasks))
