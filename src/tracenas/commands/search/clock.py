"""The time that a search may take, and what of it is left."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from tracenas.strategies.score import is_number

__all__ = ["SearchClock"]


class SearchClock:
    """Runs from the command's start; what an interrupted run's candidates took before counts, too.

    Args:
        minutes: that the search may take; None: any.
        started: when the command began, as `time.monotonic` tells it; None: now.
    """

    def __init__(self, minutes: float | None, started: float | None = None) -> None:
        self.minutes = minutes
        self.started = time.monotonic() if started is None else started
        self._before = 0.0
        self._reserved: Callable[[int], float] = lambda count: 0.0
        self._done = 0
        self._first = 0.0
        self._count = 0

    def go_on(self, records: Sequence[dict[str, Any]], reserved: Callable[[int], float] = lambda count: 0.0) -> None:
        """Candidates begin now; those of a run's journal count.

        Args:
            reserved: how many candidates take as long as what follows the last one of so many.
        """
        self._reserved, self._done = reserved, len(records)
        self._before = sum(float(r["seconds"]) for r in records if is_number(r.get("seconds")))
        self._first = time.monotonic()

    def count(self) -> None:
        """One candidate more was measured."""
        self._count += 1

    def enough(self) -> bool:
        """Whether half of another candidate would be beyond the time, or would leave none for what follows."""
        following = self._reserved(self._done + self._count + 1)
        return self.minutes is not None and self.left < self._each * (0.5 + following)

    @property
    def left(self) -> float:
        """Seconds."""
        assert self.minutes is not None
        return 60 * self.minutes - self._before - (time.monotonic() - self.started)

    @property
    def _each(self) -> float:
        """Seconds of a candidate, on average."""
        return (time.monotonic() - self._first) / self._count if self._count else 0.0

    def expected(self, done: int) -> int | None:
        """Candidates in all that the time is enough for, once some were measured here."""
        if self.minutes is None or not self._each:
            return None
        return done + max(0, round(self.left / self._each - self._reserved(done + 1)))
