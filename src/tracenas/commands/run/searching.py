"""The search of a run, with the settings of its other stages kept beside its own."""

import logging
from collections.abc import Callable

from tracenas.commands.run.sections import prune_config
from tracenas.commands.search.command import search
from tracenas.commands.search.result import SearchOutcome
from tracenas.config import RunConfig, SearchConfig
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.refit import HELD_OUT
from tracenas.pipeline.resume import KIND
from tracenas.strategies import Progress

__all__ = ["search_of", "warn_as_scored"]

_log = logging.getLogger("tracenas")


def search_of(
    config: RunConfig, source: ModelSource, on_generation: Callable[[Progress], None] | None
) -> SearchOutcome:
    """Search, or what the run's search has found."""
    settings = SearchConfig(**{key: getattr(config, key) for key in SearchConfig.model_fields})
    further = {key: value for key, value in config.model_dump().items() if key not in SearchConfig.model_fields}
    return search(settings, source, {KIND: "run", **further}, on_generation=on_generation)


def warn_as_scored(config: RunConfig, searched: SearchOutcome) -> None:
    """Say so where the search had no text to compare refits on."""
    if config.compensate == "best" and prune_config(config, searched.best, config.out).compensate == "auto":
        _log.warning("no %s: nothing to compare refits on, checkpoints are written as scored", HELD_OUT)
