"""Tasks for workers, in line: made as they are needed, given, put back where a worker was lost, answered in order."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ["TRIES", "TaskLine"]

TRIES = 3
"""How many fresh workers a task may end, each alone, before it counts as failed."""


class TaskLine:
    """What a pool has to do.

    Args:
        tasks: JSON; the next one is made when a worker needs it, or while all of them work.
    """

    def __init__(self, tasks: Iterable[Any]) -> None:
        self._source = iter(tasks)
        self._made = 0
        self._open: dict[int, str] = {}
        """JSON text of what is not answered yet."""
        self._waiting: deque[int] = deque()
        self._deaths: dict[int, int] = {}
        self._ended = False
        self._answers: dict[int, dict[str, Any]] = {}
        """What nobody has taken yet, by place."""

    def answered(self, work: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """The answers in the order of the tasks; `work` is called until the next one is here."""
        place = 0
        while place < self._made or self.make():
            while place not in self._answers:
                work()
            yield self._answers.pop(place)
            place += 1

    def make(self) -> bool:
        """Have the next task made; False if there is none."""
        for task in self._source:
            self._open[self._made] = json.dumps(task)
            self._waiting.append(self._made)
            self._made += 1
            return True
        self._ended = True
        return False

    def runs_short(self, workers: int) -> bool:
        """Whether tasks are to be made while workers work: fewer wait than there are workers, and more may come."""
        return not self._ended and len(self._waiting) < workers

    def waits(self) -> bool:
        """Whether there is a task for a worker; it is made if need be."""
        return bool(self._waiting) or (not self._ended and self.make())

    def take(self) -> int:
        """The place of the one that waits."""
        return self._waiting.popleft()

    def text(self, place: int) -> str:
        """A task, as JSON."""
        return self._open[place]

    def answer(self, place: int, said: dict[str, Any]) -> None:
        """A worker's answer."""
        del self._open[place]
        self._answers[place] = said

    def lost(self, place: int, ending: str, *, blame: bool) -> None:
        """Its worker has ended: it waits again, unless it has ended `TRIES` fresh ones.

        Args:
            ending: how.
            blame: whether that may be the task's doing.
        """
        self._deaths[place] = self._deaths.get(place, 0) + blame
        if self._deaths[place] < TRIES:
            self._waiting.appendleft(place)
        else:
            self.answer(place, {"error": f"its process died {TRIES} times ({ending})"})
