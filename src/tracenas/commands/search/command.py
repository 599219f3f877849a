"""`tracenas search`: find the architecture with the highest proxy score under the budget."""

from tracenas.commands.search.clock import SearchClock
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.settings import check_starts, resolve_search, sized, strategy_settings, within_minutes
from tracenas.config import SearchConfig, check_used
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.resume import as_started
from tracenas.pipeline.run_directory import run_directory
from tracenas.pipeline.target import resolve_target
from tracenas.reporting.progress import START, phase
from tracenas.saliency import SALIENCIES
from tracenas.strategies import STRATEGIES

__all__ = ["search"]

_NOT_RESULTS = ("resume", "out")


def search(config: SearchConfig, kind: str = "search", source: ModelSource | None = None) -> SearchOutcome:
    """Run or resume a search (TraceNAS Algorithm 1) into the run directory `config.out`.

    Args:
        kind: the command that the directory is of.
        source: the model, where it is open.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    clock = SearchClock(config.minutes)
    source = source or open_source(config.model)
    if not config.resume:
        probe(config.text_field, config.data)
    target = resolve_target(source, config, params=config.params, tolerance=config.tolerance)
    resolved = resolve_search(config, source)
    check_used(resolved)
    STRATEGIES.check(resolved.strategy)
    SALIENCIES.check(config.saliency)
    strategy_settings(sized(resolved))
    check_starts(sized(resolved))
    with run_directory(config.out, kind, config.resume) as begun:
        with phase(START):
            from tracenas.commands.search.stage import search_target

        if begun:
            resolved = as_started(config.out, config, _NOT_RESULTS)
            target = resolve_target(source, resolved, params=resolved.params, tolerance=resolved.tolerance)
            clock = SearchClock(resolved.minutes, clock.started)
        else:
            resolved = sized(resolved) if resolved.minutes is None else within_minutes(resolved, target)
        return search_target(target, resolved, kind, begun, clock)
