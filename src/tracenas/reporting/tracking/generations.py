"""A search as its trackers see it: a point per generation, from the journal's records."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tracenas.reporting.tracking.trackers import Point
from tracenas.strategies import generations

__all__ = ["generation_points"]


def generation_points(
    records: Sequence[Mapping[str, Any]], population: int, elites: int, limit: int | None = None
) -> Iterator[Point]:
    """Scores of every generation's population, what was measured up to its end, and the best candidate's size.

    Args:
        records: of generations that have ended.
        population, elites: the search's settings.
        limit: the budget, in parameters; None: there is none.
    """
    by_id = {r["id"]: r for r in records}
    for one in generations(records, population, elites):
        so_far = [r for r in records if r["generation"] <= one.generation]
        best = by_id[one.elites[0]] if one.elites else None
        yield (
            one.generation,
            {
                "search/best": one.best,
                "search/mean_elites": one.mean_elites,
                "search/mean": one.mean,
                "search/best_loss": None if best is None else best["loss"],
                "search/evaluations": sum(r["status"] != "infeasible" for r in so_far),
                "search/failed": sum(r["status"] == "failed" for r in so_far),
                "search/seconds": sum(float(r["seconds"]) for r in so_far),
                "search/budget_used": None if best is None or limit is None else best["params"] / limit,
            },
        )
