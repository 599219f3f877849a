"""`tracenas search`: find the architecture with the highest proxy score under the budget."""

from collections.abc import Callable, Mapping
from typing import Any

from tracenas.commands.search.clock import SearchClock
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.settings import (
    check_starts,
    front_end,
    resolve_search,
    sized,
    strategy_settings,
    within_minutes,
)
from tracenas.config import RunConfig, SearchConfig, check_used
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.resume import CONFIG, KIND, LEFT_OPEN, as_started, left_open, stored_settings, write_settings
from tracenas.pipeline.run_directory import run_directory
from tracenas.pipeline.workers import with_threads, with_workers
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import to_plain
from tracenas.saliency import SALIENCIES
from tracenas.strategies import STRATEGIES, Progress

__all__ = ["search"]

_NOT_RESULTS = ("resume", "out", "report_to", "run_name", "workers", "ray")


def search(
    config: SearchConfig,
    source: ModelSource | None = None,
    run: Mapping[str, Any] | None = None,
    *,
    on_generation: Callable[[Progress], None] | None = None,
) -> SearchOutcome:
    """Run or resume a search (TraceNAS Algorithm 1) into the run directory `config.out`.

    Args:
        source: the model, where it is open.
        run: settings of the `run` that the search is part of, its command (`kind`) among them: kept with the search's.
        on_generation: told the state of the search after every generation.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    clock = SearchClock(config.minutes)
    config = with_workers(with_absolute_paths(config), on_gpus=True)
    source = source or open_source(config.model)
    if not config.resume:
        probe(config.text_field, config.data)
    target = resolve_budgets(source, config, config.out if config.resume else None)
    resolved = resolve_search(config, source)
    check_used(resolved)
    STRATEGIES.check(resolved.strategy)
    if resolved.saliency != "auto":  # which stays where a table may be measured
        SALIENCIES.check(resolved.saliency)
    planned = with_threads(sized(resolved))
    strategy_settings(planned)
    check_starts(planned)
    if planned.front:
        front_end(planned, target.space)
    _ = config.trackers  # those that are unknown or not installed are refused
    whole = {KIND: "search", **(run or {})}
    with run_directory(config.out, whole[KIND], config.resume) as begun:
        with phase(START):
            from tracenas.commands.search.stage import search_target

        if begun:
            resolved = as_started(config.out, config, _NOT_RESULTS)
            stored = stored_settings(config.out / CONFIG, RunConfig)
            if (settings := {**stored, **to_plain(dict(run or {}))}) != stored:  # sections were added
                write_settings(config.out / CONFIG, settings)
            target = resolve_budgets(source, resolved, config.out)
            clock = SearchClock(resolved.minutes, clock.started)
        else:
            resolved = planned if resolved.minutes is None else within_minutes(resolved, target)
            whole[LEFT_OPEN] = left_open(config.model_dump(), resolved.model_dump())
        return search_target(target, resolved, whole, begun, clock, on_generation)
