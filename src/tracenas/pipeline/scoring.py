"""What candidates are scored by: one proxy or a combination of them, and panels of many."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from tracenas.errors import UserError
from tracenas.formats import plural
from tracenas.journal import Journal
from tracenas.models.functionals.memory import free_memory
from tracenas.models.surgery.supernet import Realisation
from tracenas.paging import in_memory
from tracenas.pipeline.estimate import trace_rank
from tracenas.pipeline.recomputation import as_it_fits
from tracenas.pipeline.reference import REFERENCE, reference_pool, stored_pool
from tracenas.pipeline.refit.fitting import compensated_realisation
from tracenas.pipeline.sensitivity import session_table
from tracenas.pipeline.session import Session
from tracenas.proxies import PROXIES
from tracenas.proxies.combination import Choice, RankScale, choose
from tracenas.reporting.progress import phase
from tracenas.scoring.block_major import BlockMajorScorer, runs_by_blocks
from tracenas.scoring.combined import CombinedEvaluator
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.front_bars import FrontBars
from tracenas.scoring.measuring import ScoringSettings
from tracenas.scoring.panel import Panel
from tracenas.scoring.raced import RacingEvaluator
from tracenas.scoring.travelling import CandidateScorer
from tracenas.scoring.workload import Shape
from tracenas.space.architecture import Architecture

__all__ = ["by_blocks", "make_evaluator", "make_panel", "make_racing", "on_other_text"]

_log = logging.getLogger("tracenas")


def make_evaluator(
    session: Session, proxy: str, rank: int, reference: Path | None = None
) -> Evaluator | CombinedEvaluator:
    """Scores candidates of a session by a proxy, or by a combination (its pool is scored first, if need be).

    Args:
        rank: of the gradient traces, 0 for full.
        reference: file of the combination's pool, complete; None: the one of the session's run, made or completed.

    Raises:
        UserError: for an unknown proxy, or a combination without a pool.
    """
    choice = choose(proxy)
    table = session_table(session) if "sensitivity" in choice.needs else None
    how = compensated_realisation(session) if choice.compensated else None
    net = session.supernet()
    if choice.single:
        with phase("base pass"):
            return Evaluator(
                net,
                session.space,
                session.tokens,
                choice.proxies[0],
                _measuring(session, choice.needs, rank),
                how,
                table,
            )
    if reference is None and session.run is None:
        raise ValueError("a combination's ranks need a run's reference pool")
    panel = make_panel(session, tuple(choice.weights), rank, how)
    records = stored_pool(reference, choice) if reference is not None else _scored_pool(session, panel)
    return CombinedEvaluator(panel, session.space, choice, _scales(choice, records), how)


def make_racing(
    evaluator: Evaluator | CombinedEvaluator, race: str, elites: int, front: Sequence[str] = ()
) -> RacingEvaluator | None:
    """The evaluator with racing, None where candidates are not to race.

    Args:
        race: `on`, `off`, or `auto`: on where the proxy is additive.
        front: the costs of a front, on which candidates race against their neighbours; empty: there is none.

    Raises:
        UserError: if racing is asked for and the proxy is not additive.
    """
    if isinstance(evaluator, Evaluator) and evaluator.proxy.additive:
        bars = FrontBars(evaluator.space, front) if front else None
        return None if race == "off" else RacingEvaluator(evaluator, elites, bars)
    if race == "on":
        names = ", ".join(name for name in PROXIES if PROXIES.get(name).additive)
        raise UserError(f"race 'on': only a single proxy that is a mean over sequences can race: {names}")
    return None


def by_blocks(
    session: Session, scorer: CandidateScorer, at_once: int | None = None
) -> CandidateScorer | BlockMajorScorer:
    """The scorer, which takes candidates block by block where that can be done and is less work.

    Args:
        at_once: candidates that may go together; None: any number.
    """
    if isinstance(scorer, CombinedEvaluator) or not runs_by_blocks(scorer):
        return scorer
    return BlockMajorScorer(scorer, session.loaded.keep, at_once=at_once, shown=_together)


@contextmanager
def _together(candidates: int) -> Iterator[Callable[[int, int], None]]:
    with phase(f"{plural(candidates, 'candidate')}, block by block") as steps:
        yield steps.report


def on_other_text(session: Session, evaluator: Evaluator, tokens: Tensor) -> Evaluator:
    """Scores the same candidates, realised alike, on other text, int64 [N, L]."""
    settings, table = evaluator.settings, evaluator.measurer.table
    return Evaluator(evaluator.net, session.space, tokens, evaluator.proxy, settings, evaluator.realisation, table)


def make_panel(session: Session, names: Sequence[str], rank: int, compensated: Realisation | None = None) -> Panel:
    """A panel of proxies; statistics of a compensated realisation are taken here unless one is given, and a table.

    Raises:
        UserError: for an unknown proxy.
    """
    proxies = [PROXIES.get(name) for name in names]
    table = session_table(session) if any("sensitivity" in p.needs for p in proxies) else None
    if compensated is None and any("compensated" in p.needs for p in proxies):
        compensated = compensated_realisation(session)
    net = session.supernet()
    measuring = _measuring(session, frozenset[str]().union(*(p.needs for p in proxies)), rank)
    with phase("base pass"):
        return Panel(net, session.space, session.tokens, proxies, measuring, compensated, table)


def _measuring(session: Session, needs: frozenset[str], rank: int) -> ScoringSettings:
    """How candidates are measured by proxies with these needs; activations are kept where there is room for them."""
    device, (samples, length) = session.loaded.device, session.tokens.shape
    element, traced = session.loaded.dtype.itemsize, trace_rank(needs, rank)
    shape = Shape(samples, length, session.micro_batch, traced, element, "cuda" if device.type == "cuda" else "cpu")
    room = free_memory(device) if session.loaded.keep is in_memory else 0
    recompute = as_it_fits(shape, session.target, room, loaded=True).recomputed
    if recompute:
        _log.info("too little memory to keep a pass's activations: blocks run again in the backward pass")
    return ScoringSettings(rank, session.seed, session.micro_batch, recompute=recompute)


def _scored_pool(session: Session, panel: Panel) -> list[dict[str, Any]]:
    """Every pool architecture's values, from the run's file as far as it goes, the rest scored now and written.

    Raises:
        UserError: if the file is of another run.
    """
    assert session.run is not None
    path = session.run / REFERENCE
    journal, pool = Journal(path), reference_pool(session.space, session.seed)
    records = list(journal.read())
    _check_pool(path, records, pool, panel.names)
    if len(records) == len(pool):
        return records
    with phase("reference pool", len(pool), done=len(records)) as steps:
        for arch in pool[len(records) :]:
            scores = panel.measure(arch)
            record = {
                "id": arch.id,
                "arch": arch.to_json(),
                "values": {name: s.value for name, s in scores.items()},
                "reasons": {name: s.reason for name, s in scores.items() if s.reason is not None},
            }
            journal.append(record)
            records.append(record)
            steps.advance()
    return records


def _check_pool(path: Path, records: list[dict[str, Any]], pool: list[Architecture], names: tuple[str, ...]) -> None:
    """Refuse records that are not the first ones of this run's pool."""
    for line, record in enumerate(records, start=1):
        of_pool = line <= len(pool) and record.get("id") == pool[line - 1].id
        if not of_pool or set(record.get("values", ())) != set(names):
            raise UserError(f"{path}: line {line}: not of this run's pool: {json.dumps(record)[:80]}")


def _scales(choice: Choice, records: list[dict[str, Any]]) -> dict[str, RankScale]:
    scales = {}
    for name in choice.weights:
        values = [v for r in records if (v := r["values"][name]) is not None]
        if len(values) < 2:
            why = next((r["reasons"][name] for r in records if name in r["reasons"]), "the space is too small")
            raise UserError(f"proxy '{choice.text}': '{name}' has no ranks in the reference pool: {why}")
        scales[name] = RankScale(values)
    return scales
