"""What a search reports to its trackers: a point per generation, and in the end what it found."""

import json
from collections.abc import Callable

from tracenas.commands.search.result import SearchOutcome
from tracenas.config import SearchConfig
from tracenas.journal import Journal
from tracenas.pipeline.run_directory import JOURNAL
from tracenas.reporting.tracking.generations import generation_points
from tracenas.reporting.tracking.trackers import Trackers
from tracenas.strategies import Progress

__all__ = ["report_generations", "report_result"]

_RESULT = ("score", "loss", "params", "evaluations", "seconds")
_RISES = ("predicted_rise", "measured_rise")


def report_generations(
    trackers: Trackers, config: SearchConfig, limit: int | None
) -> Callable[[Progress], None] | None:
    """What is to be called after every generation of a search with settings that are `sized`; None without trackers.

    Args:
        limit: the budget, in parameters; None: there is none of these.
    """
    if not trackers:
        return None
    population, elites = config.population, config.elites
    assert population is not None and elites is not None

    def tell(progress: Progress) -> None:
        records = [r for r in Journal(config.out / JOURNAL).read() if r["generation"] <= progress.generation]
        trackers.report(generation_points(records, population, elites, limit))

    return tell


def report_result(trackers: Trackers, config: SearchConfig, outcome: SearchOutcome) -> None:
    """Report the generations that were not, and the result."""
    if not trackers:
        return
    summary = outcome.summary
    assert config.population is not None and config.elites is not None
    records, limit = Journal(config.out / JOURNAL).read(), summary["budget"].get("limit")
    trackers.report(generation_points(records, config.population, config.elites, limit))
    rises = {key: value for key, value in summary.items() if key.startswith(_RISES)}
    values = {**{key: summary[key] for key in _RESULT}, **rises}
    if limit is not None:
        values["budget_used"] = summary["params"] / limit
    texts = {"result/architecture": json.dumps(outcome.architecture.to_json())}
    trackers.conclude({f"result/{key}": value for key, value in values.items()}, texts, outcome.best)
