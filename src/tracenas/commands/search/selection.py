"""A search's best candidates on held-out text: measured once, kept in the run directory, and read from there.

The text is the first `WINDOWS` sequences of the run's held-out ones; the others are left to the comparison of refits.
What is compared is the proxy, where that is a mean over sequences; other searches end with their best score.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from tracenas.commands.search.conclusion import undecided
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.writing import stock_shaped
from tracenas.pipeline.refit.text import stored_held_out
from tracenas.pipeline.run_directory import SELECTION
from tracenas.pipeline.scoring import by_blocks, on_other_text
from tracenas.pipeline.session import Session
from tracenas.proxies.combination import choose
from tracenas.reporting.progress import phase
from tracenas.rundir import write_json
from tracenas.scoring.combined import CombinedEvaluator
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.raced import RacingEvaluator
from tracenas.space.architecture import Architecture
from tracenas.strategies import SearchResult
from tracenas.strategies.selection import CONTENDERS, WINDOWS, Contender, contenders

__all__ = ["decide", "require_held_out", "reserved"]


def require_held_out(session: Session, config: SearchConfig) -> None:
    """Refuse `prefer` where there is no text to compare candidates on.

    Raises:
        UserError: as said.
    """
    if config.prefer != "loss" and stored_held_out(session) is None:
        raise UserError(
            f"prefer {config.prefer}: candidates are compared on held-out text, and '{config.data}' holds none beside "
            f"calibration and statistics; use more text or fewer samples, or prefer loss"
        )


def reserved(session: Session, config: SearchConfig, count: int) -> float:
    """What `decide` takes at most after `count` candidates, in candidates on all of the calibration.

    It measures the base and the contenders; of one candidate there is nothing to decide.
    """
    if stored_held_out(session) is None or not choose(config.proxy).additive or count < 2:
        return 0.0
    return (1 + min(count, CONTENDERS)) * WINDOWS / len(session.tokens)


def decide(
    session: Session,
    config: SearchConfig,
    evaluator: Evaluator | CombinedEvaluator,
    result: SearchResult[Architecture],
) -> None:
    """Measure the best candidates on held-out text, where that decides between them, and keep it in the run."""
    if not undecided(config, result):
        return
    held_out = stored_held_out(session)
    assert held_out is not None and isinstance(evaluator, Evaluator)
    trials = _measured(session, config, evaluator, result, held_out.tokens[:WINDOWS])
    write_json(config.out / SELECTION, {"trials": [trial.to_json() for trial in trials]})


def _measured(
    session: Session,
    config: SearchConfig,
    evaluator: Evaluator,
    result: SearchResult[Architecture],
    tokens: torch.Tensor,
) -> Iterator[Contender]:
    """The contenders, best score first; with `prefer stock` the best stock-shaped candidate, too."""
    asked = config.prefer == "stock"
    records = contenders(result.records, config.elites or 1)
    archs = [_architecture(session, r) for r in records]
    shapes = [_stock(session, arch) if asked else None for arch in archs]
    if asked and True not in shapes and (further := _best_stock(session, result, set(archs))) is not None:
        archs, shapes = [*archs, further], [*shapes, True]
    with phase("best candidates on held-out text", len(archs)) as steps:
        scorer = by_blocks(session, RacingEvaluator(on_other_text(session, evaluator, tokens), elites=1))
        for arch, shape, score in zip(steps.over(archs), shapes, scorer(archs), strict=True):
            yield Contender(arch.id, tuple(score.extra.get("terms", (math.inf,) * len(tokens))), shape)


def _best_stock(session: Session, result: SearchResult[Architecture], known: set[Architecture]) -> Architecture | None:
    """Of the candidates that were measured to the end, the stock-shaped one with the best score."""
    measured = [r for r in result.records if r["score"] is not None and "stopped" not in r]
    for record in sorted(measured, key=lambda r: -float(r["score"])):
        arch = _architecture(session, record)
        if arch not in known and _stock(session, arch):
            return arch
    return None


def _architecture(session: Session, record: Mapping[str, Any]) -> Architecture:
    return session.space.validate(Architecture.from_json(record["arch"], where=f"journal: {record['id']}"))


def _stock(session: Session, arch: Architecture) -> bool:
    """Whether a checkpoint of it is a stock one."""
    loaded, kept = session.loaded, session.ordering.kept(session.blocks, arch)
    return stock_shaped(loaded.model, loaded.source.family, session.blocks, kept)
