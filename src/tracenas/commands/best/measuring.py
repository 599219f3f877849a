"""Candidates beside a search's own: proposed under a budget from all that is measured, scored as the search does."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from tracenas.commands.search.settings import strategy_settings
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.reference import REFERENCE
from tracenas.pipeline.resume import same_model
from tracenas.pipeline.run_directory import PROPOSALS, in_use
from tracenas.pipeline.scoring import by_blocks, make_evaluator
from tracenas.pipeline.session import Session
from tracenas.pipeline.starts import START, Starts, run_starts
from tracenas.pipeline.target import PruningTarget
from tracenas.proxies.combination import choose
from tracenas.reporting.progress import phase
from tracenas.saliency.allocation.solver import allocate, predicted_rises
from tracenas.space.architecture import Architecture
from tracenas.strategies.guided import Guided
from tracenas.strategies.result import journal_record

__all__ = ["measure"]

Known = Sequence[tuple[float, Architecture]]
"""Scores on all of the run's text."""


def measure(target: PruningTarget, config: SearchConfig, known: Known, count: int) -> None:
    """Score `count` further candidates and add them to RUN/proposals.jsonl; fewer where no new one can be drawn.

    Args:
        target: with the budgets that candidates are to meet.
        config: of the run, with what was left open as it came to; `out` is the run's directory.
        known: what is measured, under any budget.

    Raises:
        UserError: if the run is in use, or its model has changed.
    """
    run = config.out
    with in_use(run):
        session = open_session(target, config, data=config.data, run=run)
        begun = (run / START).is_file()
        starts = run_starts(session, config) if begun else Starts({}, None)
        reference = run / REFERENCE if not choose(config.proxy).single else None
        evaluator = make_evaluator(session, config.proxy, config.trace_rank, reference)
        same_model(run, evaluator.base_loss)
        scorer = by_blocks(session, evaluator)
        journal = Journal(run / PROPOSALS)
        with phase("proposals", count) as steps:
            guided = _guided(session, config, starts, known)
            seed = [config.seed, len(known)]
            for arch in _proposals(session, guided, starts, count, np.random.default_rng(seed)):
                score = scorer.score(arch)
                journal.append(
                    journal_record(
                        arch,
                        score,
                        generation=-1,  # of none
                        params=session.space.parameters(arch),
                        status="ok" if score.ok else "failed",
                        facts={"bos": session.start.carried},
                    )
                )
                guided.know([(score.score, arch)], session.space.fits)
                steps.advance()


def _guided(session: Session, config: SearchConfig, starts: Starts, known: Known) -> Guided[Architecture]:
    """A guided search that knows what is measured."""
    rises = None if starts.ranked is None else predicted_rises(replace(starts.ranked, space=session.space))
    settings = replace(strategy_settings(config), init="uniform")
    guided = Guided(session.space, settings, prior=replace(session.prior(), rises=rises))
    guided.know(known, session.space.fits)
    return guided


def _proposals(
    session: Session, guided: Guided[Architecture], starts: Starts, count: int, rng: np.random.Generator
) -> Iterator[Architecture]:
    """The table's own answer, without a table the uniform architecture, if it is new; then what is most promising."""
    arch = _solved(session, starts) if starts.ranked is not None else session.space.uniform()
    if arch is not None and guided.is_new(arch):
        count -= 1
        yield arch
    for _ in range(count):
        proposed = guided.propose(rng)
        if proposed is None:
            return
        yield proposed


def _solved(session: Session, starts: Starts) -> Architecture | None:
    if starts.ranked is None:
        return None
    try:
        return allocate(replace(starts.ranked, space=session.space), None).architecture
    except UserError:  # no combination of widths fills the budget; moves may
        return None
