"""What candidates are scored by, in the stages: one proxy or a combination of them, and panels of many."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracenas.config import parse_rank
from tracenas.errors import UserError
from tracenas.proxies import PROXIES
from tracenas.proxies.combination import Choice, RankScale, choose
from tracenas.rundir import Journal
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

if TYPE_CHECKING:
    from tracenas.models.checkpoints.source import ModelSource
    from tracenas.models.surgery.supernet import Realisation, Supernet
    from tracenas.pipeline.session import Session
    from tracenas.scoring.combined import CombinedEvaluator
    from tracenas.scoring.evaluator import Evaluator
    from tracenas.scoring.panel import Panel
    from tracenas.scoring.raced import RacingEvaluator

__all__ = [
    "RECOMMENDED",
    "REFERENCE",
    "evaluator_of",
    "panel_of",
    "proxy_of",
    "racing_of",
    "reference_pool",
    "stored_pool",
]

RECOMMENDED = "loss_compensated"
"""What `--proxy auto` stands for: the evidence is in docs/study.md."""

REFERENCE = "reference.jsonl"
"""In a run directory: the pool that a combination's ranks are taken in, one architecture per line."""

POOL = 32
"""Random architectures of the pool, beside the uniform one."""

_STREAM = 0x52414E4B


def proxy_of(text: str, source: "ModelSource") -> str:
    """The proxy that was asked for, or the recommended one; Φ where the model's kind cannot be compensated.

    Raises:
        UserError: for an unknown proxy, or one that needs what the model's kind has not.
    """
    if text == "auto":
        return "phi" if source.is_encoder_decoder else RECOMMENDED
    if choose(text).compensated:
        source.require_decoder(f"proxy {text}")
    return text


def evaluator_of(
    session: "Session", proxy: str, rank: str, net: "Supernet | None" = None, reference: Path | None = None
) -> "Evaluator | CombinedEvaluator":
    """Scores candidates of a session by a proxy, or by a combination (its pool is scored first, if need be).

    Args:
        reference: file of the combination's pool, complete; None: the one of the session's run, made or completed.

    Raises:
        UserError: for an unknown proxy, or a combination without a pool.
    """
    from tracenas.scoring.evaluator import Evaluator

    choice = choose(proxy)
    net = net or session.supernet()
    how = _compensated(session, net) if choice.compensated else None
    if not choice.single:
        return _combined(session, choice, rank, net, how, reference)
    return Evaluator(net, session.space, session.tokens, choice.proxies[0], _settings(session, rank), how)


def racing_of(evaluator: "Evaluator | CombinedEvaluator", race: str, elites: int) -> "RacingEvaluator | None":
    """The evaluator with racing, None where candidates are not to race.

    Args:
        race: `on`, `off`, or `auto`: on where the proxy is additive.

    Raises:
        UserError: if racing is asked for and the proxy is not additive.
    """
    from tracenas.scoring.evaluator import Evaluator
    from tracenas.scoring.raced import RacingEvaluator

    additive = isinstance(evaluator, Evaluator) and evaluator.proxy.additive
    if race == "on" and not additive:
        names = ", ".join(name for name in PROXIES if PROXIES.get(name).additive)
        raise UserError(f"race 'on': only a single proxy that is a mean over sequences can race: {names}")
    if race == "off" or not additive:
        return None
    assert isinstance(evaluator, Evaluator)
    return RacingEvaluator(evaluator, elites)


def panel_of(
    session: "Session",
    names: Sequence[str],
    rank: str,
    net: "Supernet | None" = None,
    compensated: "Realisation | None" = None,
) -> "Panel":
    """A panel of proxies; the statistics of a compensated realisation are taken here unless one is given.

    Raises:
        UserError: for an unknown proxy.
    """
    from tracenas.scoring.panel import Panel

    proxies = [PROXIES.get(name) for name in names]
    net = net or session.supernet()
    if compensated is None and any("compensated" in p.needs for p in proxies):
        compensated = _compensated(session, net)
    return Panel(net, session.space, session.tokens, proxies, _settings(session, rank), compensated)


def _settings(session: "Session", rank: str) -> Any:
    from tracenas.scoring.measuring import Settings

    return Settings(parse_rank(rank), session.config.seed, session.micro_batch)


def _compensated(session: "Session", net: "Supernet") -> "Realisation":
    from tracenas.pipeline.refit.fitting import compensated_realisation

    return compensated_realisation(session, net)


def _combined(
    session: "Session",
    choice: Choice,
    rank: str,
    net: "Supernet",
    how: "Realisation | None",
    reference: Path | None,
) -> "CombinedEvaluator":
    from tracenas.scoring.combined import CombinedEvaluator

    if reference is None and session.run is None:
        raise ValueError("a combination's ranks need a run's reference pool")
    panel = panel_of(session, tuple(choice.weights), rank, net, how)
    if reference is not None:
        values = stored_pool(reference, choice)
    else:
        assert session.run is not None
        values = _pool_values(session.run / REFERENCE, panel, session.space, session.config.seed)
    return CombinedEvaluator(panel, session.space, choice, _scales(choice, values), how)


def reference_pool(space: SearchSpace, seed: int) -> list[Architecture]:
    """The uniform architecture and `POOL` random ones of the budget, the same for the same seed.

    Fewer in a space that has not so many.
    """
    uniform = space.uniform()
    pool = [] if uniform is None else [uniform]
    rng = np.random.default_rng([seed, _STREAM])
    random: list[Architecture] = []
    for _ in range(20 * POOL):
        drawn = space.sample(rng) if len(random) < POOL else None
        if drawn is not None and drawn not in pool and drawn not in random:
            random.append(drawn)
    return pool + random


def _pool_values(path: Path, panel: "Panel", space: SearchSpace, seed: int) -> list[dict[str, Any]]:
    """Every pool architecture's values, from the file as far as it goes, the rest scored now and written.

    Raises:
        UserError: if the file is of another run.
    """
    from tracenas.reporting.progress import stage_progress

    journal = Journal(path)
    pool = reference_pool(space, seed)
    known = _known(path, journal.read(), pool, panel.names)
    if len(known) < len(pool):
        with stage_progress("reference pool", len(pool)) as advance:
            advance(len(known))
            for arch in pool[len(known) :]:
                scores = panel.measure(arch)
                record = {
                    "id": arch.id,
                    "arch": arch.to_json(),
                    "values": {name: s.value for name, s in scores.items()},
                    "reasons": {name: s.reason for name, s in scores.items() if s.reason is not None},
                }
                journal.append(record)
                known.append(record)
                advance()
    return known


def stored_pool(path: Path, choice: Choice) -> list[dict[str, Any]]:
    """The pool that a search left.

    Raises:
        UserError: if it left none, or one of other proxies.
    """
    records = Journal(path).read()
    if not records:
        raise UserError(
            f"proxy '{choice.text}': ranks are relative to a search's reference pool, and there is no {path}; "
            "give the best.json of a search by this combination"
        )
    for line, record in enumerate(records, start=1):
        if missing := sorted(set(choice.weights) - set(record.get("values", ()))):
            raise UserError(f"{path}: line {line}: no value of '{missing[0]}': of a search by another combination")
    return records


def _known(
    path: Path, records: list[dict[str, Any]], pool: list[Architecture], names: tuple[str, ...]
) -> list[dict[str, Any]]:
    for line, record in enumerate(records, start=1):
        own = line <= len(pool) and record.get("id") == pool[line - 1].id
        if not own or set(record.get("values", ())) != set(names):
            raise UserError(f"{path}: line {line}: not of this run's pool: {json.dumps(record)[:80]}")
    return list(records)


def _scales(choice: Choice, records: list[dict[str, Any]]) -> dict[str, RankScale]:
    scales = {}
    for name in choice.weights:
        values = [v for r in records if (v := r["values"][name]) is not None]
        if len(values) < 2:
            why = next((r["reasons"][name] for r in records if name in r["reasons"]), "the space is too small")
            raise UserError(f"proxy '{choice.text}': '{name}' has no ranks in the reference pool: {why}")
        scales[name] = RankScale(values)
    return scales
