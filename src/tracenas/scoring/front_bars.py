"""Racing where sizes differ: every candidate against the best of the front that costs no more than it.

Whoever is clearly worse than something that costs no more cannot be on the front. A candidate that costs less than all
that is known has no such neighbour, and is measured to the end.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.scoring.racing import Bar, generation_bar
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.dominance import Point, non_dominated

__all__ = ["FrontBars"]


class FrontBars:
    """The bars of one generation after another.

    Args:
        space: whose budgets count the costs.
        costs: names of those that the front spans.
    """

    def __init__(self, space: SearchSpace, costs: Sequence[str]) -> None:
        self.space, self.costs = space, tuple(costs)
        self._known: dict[str, Point] = {}
        self._members: list[tuple[Point, Bar]] = []

    def begin(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A generation begins.

        Args:
            records: the journal's so far.
        """
        measured = {str(r["id"]): r for r in records if r["score"] is not None and "stopped" not in r}
        terms = [r["terms"] for r in measured.values()]
        front = non_dominated(
            {name: (*self._spent(record), float(record["score"])) for name, record in measured.items()}
        )
        bars = ((self._known[name], generation_bar([measured[name]["terms"]], terms)) for name in front)
        best_first = sorted(bars, key=lambda pair: 0.0 if pair[1] is None else pair[1].mean)
        self._members = [(costs, bar) for costs, bar in best_first if bar is not None]

    def of(self, candidate: Architecture) -> Bar | None:
        """That of the best that costs no more."""
        spent = self._costs(candidate)
        return next((bar for costs, bar in self._members if _no_more(costs, spent)), None)

    def _spent(self, record: Mapping[str, Any]) -> Point:
        name = str(record["id"])
        if name not in self._known:
            self._known[name] = self._costs(Architecture.from_json(record["arch"], where=f"journal: {name}"))
        return self._known[name]

    def _costs(self, arch: Architecture) -> Point:
        spent = self.space.costs(arch)
        return tuple(float(spent[name]) for name in self.costs)


def _no_more(costs: Point, others: Point) -> bool:
    return all(cost <= other for cost, other in zip(costs, others, strict=True))
