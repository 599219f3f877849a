"""What evaluators have in common: candidates are scored one by one, and the time is taken."""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from tracenas.strategies.score import Score

__all__ = ["Scorer"]

C = TypeVar("C")


class Scorer(ABC, Generic[C]):
    """`evaluate(list of candidates) -> Score…`, as `run_search` calls it."""

    def __call__(self, candidates: Sequence[C]) -> Iterator[Score]:
        """One score per candidate, in order; a candidate that fails is scored as failed, with the reason."""
        for candidate in candidates:
            yield self.score(candidate)

    def on_generation(self, elites: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> None:
        """What a generation is measured against, before it begins: nothing.

        Args:
            elites: journal records, best first.
            records: of all candidates so far.
        """
        return None

    def score(self, candidate: C) -> Score:
        """Score one candidate."""
        started = time.perf_counter()
        score = self._score(candidate)
        return replace(score, seconds=time.perf_counter() - started)

    @abstractmethod
    def decoded(self, data: Any) -> C:
        """A candidate from its JSON, checked."""

    @abstractmethod
    def _score(self, candidate: C) -> Score:
        """The score, without its time."""
