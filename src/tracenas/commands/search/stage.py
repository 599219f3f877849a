"""The search itself: candidates of a session are scored until the strategy has no more, and the best is kept."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

from tracenas.cluster.joining import Cluster
from tracenas.commands.search.clock import SearchClock
from tracenas.commands.search.conclusion import Searched, concluded
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.selection import decide, require_held_out, reserved
from tracenas.commands.search.settings import strategy_settings
from tracenas.commands.search.tracking import report_generations, report_result
from tracenas.commands.search.workers import prepare_workers, scored_by
from tracenas.config import SearchConfig
from tracenas.config.usage import refits
from tracenas.journal import Journal
from tracenas.pipeline.distributed import cluster_of
from tracenas.pipeline.estimate import forward_only
from tracenas.pipeline.latency import keep_latency
from tracenas.pipeline.one_shot import run_anchor
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.statistics import StoredGrams
from tracenas.pipeline.resume import KIND, resolve_settings, resolved_settings, same_model
from tracenas.pipeline.run_directory import JOURNAL, starting
from tracenas.pipeline.scoring import make_evaluator, make_racing
from tracenas.pipeline.session import Session
from tracenas.pipeline.starts import run_starts
from tracenas.pipeline.target import PruningTarget
from tracenas.pipeline.workers import gpus_of, local_workers
from tracenas.proxies.combination import choose
from tracenas.reporting.progress import SearchProgress
from tracenas.reporting.tracking.trackers import Trackers, tracked
from tracenas.scoring.block_major import BlockMajorScorer
from tracenas.scoring.pooled import PooledScorer
from tracenas.scoring.travelling import CandidateScorer
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import Progress, SearchResult, Strategy, run_search

__all__ = ["search_target"]

_log = logging.getLogger("tracenas")


def search_target(
    target: PruningTarget,
    config: SearchConfig,
    run: Mapping[str, Any],
    begun: bool,
    clock: SearchClock,
    on_generation: Callable[[Progress], None] | None = None,
) -> SearchOutcome:
    """Search in the run directory `config.out`, which this process has.

    Args:
        config: with nothing left to `auto` but what the machine decides.
        run: the command that the directory is of, and what it keeps beside the search's settings.
        begun: whether a run is gone on with.
        clock: of `minutes`.
        on_generation: told the state of the search after every generation.
    """
    with tracked(config.out, config.trackers, config.run_name, begun=begun) as trackers:
        outcome = concluded(target, config) if begun else None
        if outcome is None:
            with cluster_of(config, on_gpus=True) as cluster:
                outcome = _search(target, config, run, begun, clock, trackers, on_generation, cluster)
        else:
            trackers.begin(resolved_settings(config.out, SearchConfig))
        report_result(trackers, config, outcome)
        return outcome


def _search(
    target: PruningTarget,
    config: SearchConfig,
    run: Mapping[str, Any],
    begun: bool,
    clock: SearchClock,
    trackers: Trackers,
    on_generation: Callable[[Progress], None] | None,
    cluster: Cluster | None,
) -> SearchOutcome:
    """The search from where it is; its generations are reported, its result is not."""
    record = {**config.model_dump(), **run}
    with starting(config.out, run[KIND], record, begun), closing(StoredGrams(target.blocks)) as grams:
        keep_latency(config, config.out)
        prepare_workers(config)
        hold_out = not target.source.is_encoder_decoder
        session = open_session(
            target,
            config,
            data=config.data,
            run=config.out,
            hold_out=hold_out,
            sensitivity=config.sensitivity,
            grams=grams if refits(config) else None,
            half=forward_only(choose(config.proxy).needs),
            workers=1 if gpus_of(config.device) else local_workers(config),
        )
        anchor = [run_anchor(session, config.init)] if config.init == "nirvana" else []
        starts = run_starts(session, config)
        samples, seq_len = session.tokens.shape
        begun_from = ",".join(starts.architectures) or "none"
        named = {"samples": samples, "seq_len": seq_len, "start": begun_from, "saliency": session.saliency}
        resolve_settings(config, config.out, {**session.machine(), **named})
        evaluator = make_evaluator(session, config.proxy, config.trace_rank)
        racing = make_racing(evaluator, config.race, strategy_settings(config).elites, config.front_costs)
        same_model(config.out, evaluator.base_loss)
        require_held_out(session, config)
    searched = Searched.of(session, starts, anchor, evaluator.base_loss)
    strategy = searched.strategy(config)
    journal = Journal(config.out / JOURNAL)
    clock.go_on(journal.read(), partial(reserved, session, config))
    _log.info("%s", _announced(config, strategy.planned, session))
    trackers.begin(resolved_settings(config.out, SearchConfig))
    told = [
        report_generations(trackers, config, _limit(target.space)),
        _drawn(searched, config, journal),
        on_generation,
    ]
    with scored_by(racing or evaluator, config, session, cluster) as scorer:
        result = _run(session, config, strategy, scorer, journal, clock, told, {"bos": searched.bos})
    if result.settled is not None:
        _log.info(
            "search: ended after %d of at most %d candidates: %s", len(result.records), strategy.planned, result.settled
        )
    if config.minutes is not None:  # what the time came to is the run's size, should it be replayed
        resolve_settings(config, config.out, {"evaluations": len(result.records)})
    decide(session, config, evaluator, result)
    return searched.conclude(config, result)


def _run(
    session: Session,
    config: SearchConfig,
    strategy: Strategy[Architecture],
    scorer: CandidateScorer | BlockMajorScorer | PooledScorer[Architecture],
    journal: Journal,
    clock: SearchClock,
    told: Sequence[Callable[[Progress], None] | None],
    facts: Mapping[str, Any],
) -> SearchResult[Architecture]:
    """The strategy to its end, shown as it goes.

    Args:
        told: what is called after every generation.
        facts: in every record of the journal.
    """
    with _display(session.space, config.proxy, strategy.generations, clock, told) as on_event:
        return run_search(
            strategy,
            scorer,
            journal,
            on_event=on_event,
            on_generation=scorer.on_generation,
            facts=facts,
            enough=clock.enough,
        )


def _drawn(searched: Searched, config: SearchConfig, journal: Journal) -> Callable[[Progress], None] | None:
    """What keeps RUN/front.json current after every generation; what is known before the first is there at once."""
    if not config.front:
        return None
    front = searched.front_file(config)
    front.write(journal.read())
    if front.predicted:
        _log.info("%s", front.predicted)

    def keep(_: Progress) -> None:
        front.write(journal.read())

    return keep


def _announced(config: SearchConfig, planned: int, session: Session) -> str:
    """What the settings come to, in a line."""
    samples, length = session.tokens.shape
    text = f"candidates on {samples} × {length:,} tokens"
    if config.minutes is not None:
        return f"search: {config.minutes:g} minutes, {text}, {config.population} per generation"
    return f"search: at most {planned:,} {text}, {min(planned, config.population or 1)} per generation"


def _limit(space: SearchSpace) -> int | None:
    """The budget in parameters; None where there are only others."""
    return None if space.parameter_window is None else space.parameter_window[1]


@contextmanager
def _display(
    space: SearchSpace,
    proxy: str,
    generations: int,
    clock: SearchClock,
    told: Sequence[Callable[[Progress], None] | None],
) -> Iterator[Callable[[Progress], None]]:
    """The live progress display; yields the search's event handler.

    Args:
        told: what is called after every generation.
    """
    params: list[int | None] = [None]
    label = "Φ" if proxy == "phi" else proxy
    base = space.parameters(space.base)
    with SearchProgress(generations, budget=_limit(space), base_params=base, label=label) as display:

        def on_event(event: Progress) -> None:
            if event.record is not None and event.record["id"] == event.best_id:
                params[0] = event.record["params"]
            if event.record is not None:
                clock.count()
            total = clock.expected(event.done) or event.planned - event.duplicates
            display.update(event.generation, event.done, total, event.best, params[0], event.duplicates)
            for tell in told if event.record is None else ():
                if tell is not None:
                    tell(event)

        yield on_event
