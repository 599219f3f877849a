"""The search itself: candidates of a session are scored until the strategy has no more, and the best is kept."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tracenas.commands.search.clock import SearchClock
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.settings import strategy_settings
from tracenas.config import SearchConfig
from tracenas.journal import Journal
from tracenas.pipeline.one_shot import stored_anchor
from tracenas.pipeline.opening import open_session
from tracenas.pipeline.refit.record import realisation_facts
from tracenas.pipeline.resume import resolve_settings, same_model
from tracenas.pipeline.rises import rises
from tracenas.pipeline.run_directory import BEST, JOURNAL, SUMMARY, starting
from tracenas.pipeline.scoring import make_evaluator, make_racing
from tracenas.pipeline.session import Session
from tracenas.pipeline.starts import run_starts
from tracenas.pipeline.target import PruningTarget
from tracenas.reporting.progress import SearchProgress
from tracenas.resident import peak_memory
from tracenas.rundir import provenance, write_json
from tracenas.saliency.allocation import Ranked
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import STRATEGIES, Progress, SearchResult, run_search

__all__ = ["search_target"]

_log = logging.getLogger("tracenas")


def search_target(
    target: PruningTarget, config: SearchConfig, kind: str, begun: bool, clock: SearchClock
) -> SearchOutcome:
    """Search in the run directory `config.out`, which this process has.

    Args:
        config: with nothing left to `auto` but what the machine decides.
        begun: whether a run is gone on with.
        clock: of `minutes`.
    """
    space = target.space
    with starting(config.out, kind, config.model_dump(), begun):
        hold_out = not target.source.is_encoder_decoder
        session = open_session(
            target, config, data=config.data, run=config.out, hold_out=hold_out, sensitivity=config.sensitivity
        )
        anchor = [stored_anchor(session, config.init)] if config.init == "nirvana" else []
        starts = run_starts(session, config)
        first = [*anchor, *starts.architectures.values()]
        samples, seq_len = session.tokens.shape
        named = {"samples": samples, "seq_len": seq_len, "start": ",".join(starts.architectures) or "none"}
        resolve_settings(config, config.out, {**session.machine(), **named})
        evaluator = make_evaluator(session, config.proxy, config.trace_rank)
        settings = strategy_settings(config)
        racing = make_racing(evaluator, config.race, settings.elites)
        same_model(config.out, evaluator.base_loss)
    if settings.init == "given" and not first:
        settings = replace(settings, init="uniform")
    strategy = STRATEGIES.get(config.strategy)(space, settings, prior=session.prior(), starts=first)
    journal = Journal(config.out / JOURNAL)
    clock.go_on(journal.read())
    _log.info("%s", _announced(config, strategy.planned, session))
    with _display(space, config.proxy, strategy.generations, clock) as on_event:
        result = run_search(
            strategy,
            racing or evaluator,
            journal,
            on_event=on_event,
            on_generation=None if racing is None else racing.on_generation,
            facts={"bos": session.start.carried},
            enough=clock.enough,
        )
    if config.minutes is not None:  # what the time came to is the run's size, should it be replayed
        resolve_settings(config, config.out, {"evaluations": len(result.records)})
    summary = {
        **_summary(config, session, evaluator.base_loss, result),
        **_rises(starts.ranked, evaluator.base_loss, result),
    }
    write_json(config.out / BEST, _best(config, session, result))
    write_json(config.out / SUMMARY, summary)
    return SearchOutcome(config.out, config.out / BEST, result.best, result.score, summary)


def _best(config: SearchConfig, session: Session, result: SearchResult[Architecture]) -> dict[str, Any]:
    """What best.json holds."""
    return {
        "architecture": result.best.to_json(),
        "score": result.score,
        "loss": result.record["loss"],
        "id": result.best.id,
        "provenance": provenance(
            model=config.model,
            seed=config.seed,
            proxy=config.proxy,
            dtype=session.dtype,
            bos=session.start.carried,
            **realisation_facts(config.proxy, config.ridge),
        ),
    }


def _announced(config: SearchConfig, planned: int, session: Session) -> str:
    """What the settings come to, in a line."""
    samples, length = session.tokens.shape
    text = f"candidates on {samples} × {length:,} tokens"
    if config.minutes is not None:
        return f"search: {config.minutes:g} minutes, {text}, {config.population} per generation"
    return f"search: at most {planned:,} {text}, {min(planned, config.population or 1)} per generation"


@contextmanager
def _display(
    space: SearchSpace, proxy: str, generations: int, clock: SearchClock
) -> Iterator[Callable[[Progress], None]]:
    """The live progress display; yields the search's event handler."""
    params: list[int | None] = [None]
    label = "Φ" if proxy == "phi" else proxy
    base = space.parameters(space.base)
    with SearchProgress(generations, budget=space.window[1], base_params=base, label=label) as display:

        def on_event(event: Progress) -> None:
            if event.record is not None and event.record["id"] == event.best_id:
                params[0] = event.record["params"]
            if event.record is not None:
                clock.count()
            total = clock.expected(event.done) or event.planned - event.duplicates
            display.update(event.generation, event.done, total, event.best, params[0], event.duplicates)

        yield on_event


def _summary(
    config: SearchConfig, session: Session, base_loss: float, result: SearchResult[Architecture]
) -> dict[str, Any]:
    source, space = session.target.source, session.space
    units: dict[str, list[int]] = {}
    for layer in space.layers:
        for s in layer.sub_blocks:
            units.setdefault(s.unit, []).append(s.units)
    return {
        "model": config.model,
        **({"weights": source.origin} if source.origin else {}),
        "family": source.family.model_type,
        "base": {
            "params": space.parameters(space.base),
            "units": units,
            "layers": len(space.layers),
            "loss": base_loss,
        },
        "params": space.parameters(result.best),
        "budget": {"limit": space.window[1], "lower": space.window[0]},
        "score": result.score,
        "loss": result.record["loss"],
        "proxy": config.proxy,
        "strategy": config.strategy,
        "seed": config.seed,
        "population": config.population,
        "elites": config.elites,
        "evaluations": result.evaluated,
        "duplicates": result.duplicates,
        "seconds": sum(float(r["seconds"]) for r in result.records),
        "overhead_seconds": result.seconds - result.evaluation_seconds,
        "calibration_tokens": session.tokens.numel(),
        "bos": session.start.carried,
        **_measured(session, result),
        "peak_memory_bytes": peak_memory(),
        "kept": session.kept_units(result.best),
        "generations": [g.to_json() for g in result.generations],
    }


def _rises(ranked: Ranked | None, base_loss: float, result: SearchResult[Architecture]) -> dict[str, float]:
    """Predicted and measured rise of the loss of the best candidate, of MLPs alone and of equal ratios."""
    if ranked is None:
        return {}
    losses = {r["id"]: r["loss"] for r in result.records if r["loss"] is not None and "stopped" not in r}
    return rises(ranked, result.best, lambda arch: losses[arch.id] - base_loss if arch.id in losses else None)


def _measured(session: Session, result: SearchResult[Architecture]) -> dict[str, int]:
    """Calibration tokens that candidates were run on, and how many of them racing stopped."""
    count, length = session.tokens.shape
    run = [r for r in result.records if r["status"] == "ok" and (r["loss"] is not None or "stopped" in r)]
    return {
        "measured_tokens": sum(length * int(r.get("stopped", count)) for r in run),
        "stopped": sum("stopped" in r for r in run),
    }
