"""`tracenas search`: find the architecture with the highest proxy score under the budget."""

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tracenas.config import SearchConfig, check_used
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.one_shot import anchor_of
from tracenas.pipeline.refit.fitting import realisation_facts
from tracenas.pipeline.resume import as_started, resolve_settings, same_model
from tracenas.pipeline.run_directory import run_directory, starting
from tracenas.pipeline.scoring import proxy_of, racing_of
from tracenas.pipeline.session import Session, open_session, options_of, space_of
from tracenas.reporting.terminal import Table, print_table
from tracenas.rundir import Journal, provenance, write_json
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import STRATEGIES, Progress, SearchResult, Settings, run_search

__all__ = ["SearchOutcome", "resolved", "search"]

C = TypeVar("C", bound=SearchConfig)

JOURNAL, BEST, SUMMARY = "journal.jsonl", "best.json", "summary.json"
_NOT_RESULTS = ("resume", "out")


@dataclass(frozen=True)
class SearchOutcome:
    """Where a finished search is and what it found.

    Args:
        path: the run directory.
        best: its best.json, as `prune` takes it.
        architecture: the best candidate.
        score: its proxy score.
        summary: what summary.json says.
    """

    path: Path
    best: Path
    architecture: Architecture
    score: float
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "run": str(self.path),
            "best": str(self.best),
            "architecture": self.architecture.to_json(),
            **self.summary,
        }

    def show(self) -> None:
        """A summary on stdout."""
        s = self.summary
        print_table(
            Table(
                f"search of {s['model']}",
                ("", "value"),
                [
                    (f"best {s['proxy']}", f"{self.score:.4f}"),
                    (
                        "parameters",
                        f"{s['params']:,} of {s['base']['params']:,} ({100 * s['params'] / s['base']['params']:.1f}%)",
                    ),
                    (
                        "blocks kept",
                        f"{sum(not la.skip for la in self.architecture.layers)} of {len(self.architecture.layers)}",
                    ),
                    ("calibration loss", f"{s['loss']:.4f} (base {s['base']['loss']:.4f})"),
                    ("evaluations", f"{s['evaluations']:,} in {s['seconds']:.1f} s"),
                    ("best architecture", str(self.best)),
                    *([("weights", s["weights"])] if "weights" in s else []),
                ],
            )
        )


def search(config: SearchConfig, kind: str = "search") -> SearchOutcome:
    """Run or resume a search (TraceNAS Algorithm 1) into the run directory `config.out`.

    Args:
        kind: the command that the directory is of.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    from tracenas.saliency import SALIENCIES

    source = open_source(config.model)
    if not config.resume:
        probe(config.text_field, config.data)
    space = space_of(source, config, params=config.params, tolerance=config.tolerance)
    decided = resolved(config, source)
    check_used(decided)
    STRATEGIES.get(decided.strategy)
    _settings(decided)
    if config.saliency not in SALIENCIES:
        SALIENCIES.get(config.saliency)
    _ = config.trace_rank, config.protected
    with run_directory(config.out, kind, config.resume) as begun:
        settings = as_started(config.out, config, _NOT_RESULTS) if begun else decided
        return _search(settings, source, space, kind, begun)


def _search(config: SearchConfig, source: ModelSource, space: SearchSpace, kind: str, begun: bool) -> SearchOutcome:
    settings = _settings(config)
    with starting(config.out, kind, config.model_dump(), begun):
        refits = not source.family.stacks
        session = open_session(source, space, config, data=config.data, run=config.out, hold_out=refits)
        anchor = [anchor_of(session, config.init)] if config.init == "nirvana" else []
        samples, seq_len = session.tokens.shape
        resolve_settings(config.out, {**session.machine(), "samples": samples, "seq_len": seq_len})
        evaluator = session.evaluator(config.proxy, config.rank)
        racing = racing_of(evaluator, config.race, config.elites)
        same_model(config.out, evaluator.base_loss)
    seeds = [*anchor, *_seeds(config, space)]
    strategy = STRATEGIES.get(config.strategy)(space, settings, prior=session.prior(), seeds=seeds)
    with _display(space, config.proxy, strategy.generations) as on_event:
        result = run_search(
            strategy,
            racing or evaluator,
            Journal(config.out / JOURNAL),
            on_event=on_event,
            on_generation=None if racing is None else racing.on_generation,
            facts={"bos": session.start.carried},
        )
    summary = _summary(config, source, session, evaluator.base_loss, result)
    write_json(
        config.out / BEST,
        {
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
        },
    )
    write_json(config.out / SUMMARY, summary)
    return SearchOutcome(config.out, config.out / BEST, result.best, result.score, summary)


def resolved(config: C, source: ModelSource) -> C:
    """The settings with what `auto` stands for: Φ is searched as published, everything else by small guided moves."""
    proxy = proxy_of(config.proxy, source)
    strategy, init = config.strategy, config.init
    if strategy == "auto":
        strategy = "evolution" if proxy == "phi" else "guided"
    if init == "auto":
        init = "importance" if strategy == "evolution" else "uniform"
    return config.model_copy(update={"proxy": proxy, "strategy": strategy, "init": init})


def _settings(config: SearchConfig) -> Settings:
    return Settings(
        population=config.population,
        elites=config.elites,
        iterations=config.iterations,
        crossover=config.crossover,
        depth_mutation=config.mutation_depth,
        width_mutation=config.mutation_width,
        sigma=config.sigma,
        init="given" if config.init == "nirvana" else config.init,
        seed=config.seed,
    )


def _seeds(config: SearchConfig, space: SearchSpace) -> list[Architecture]:
    """Candidates that generation 0 holds besides the anchor: so that the result never scores below uniform."""
    uniform = space.uniform() if config.include_uniform and config.init != "uniform" else None
    return [] if uniform is None else [uniform]


@contextmanager
def _display(space: SearchSpace, proxy: str, generations: int) -> Iterator[Callable[[Progress], None]]:
    """The live progress display; yields the search's event handler."""
    from tracenas.reporting.progress import SearchProgress

    params: list[int | None] = [None]
    label = "Φ" if proxy == "phi" else proxy
    base = space.parameters(space.base)
    with SearchProgress(generations, budget=space.window[1], base_params=base, label=label) as display:

        def on_event(event: Progress) -> None:
            if event.record is not None and event.record["id"] == event.best_id:
                params[0] = event.record["params"]
            total = event.planned - event.duplicates
            display.update(event.generation, event.done, total, event.best, params[0], event.duplicates)

        yield on_event


def _summary(
    config: SearchConfig,
    source: ModelSource,
    session: Session,
    base_loss: float,
    result: SearchResult[Architecture],
) -> dict[str, Any]:
    space = session.space
    kept = session.ordering.kept(session.loaded.blocks(options_of(config)), result.best)
    units: dict[str, list[int]] = {}
    for layer in space.layers:
        for s in layer.sub_blocks:
            units.setdefault(s.unit, []).append(s.units)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
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
        "peak_memory_bytes": peak,
        "kept": kept_by_unit(space, kept),
        "generations": [g.to_json() for g in result.generations],
    }


def _measured(session: Session, result: SearchResult[Architecture]) -> dict[str, int]:
    """Calibration tokens that candidates were run on, and how many of them racing stopped."""
    count, length = session.tokens.shape
    run = [r for r in result.records if r["status"] == "ok"]
    return {
        "measured_tokens": sum(length * int(r.get("stopped", count)) for r in run),
        "stopped": sum("stopped" in r for r in run),
    }


def kept_by_unit(space: SearchSpace, kept: Any) -> dict[str, list[list[int] | None]]:
    """Base ids of kept units per layer, under `heads`, `channels`, …; null where a sub-block is bypassed."""
    out: dict[str, list[list[int] | None]] = {}
    for i, layer in enumerate(space.layers):
        for s in layer.sub_blocks:
            ids = kept.get((i, s.name))
            out.setdefault(s.unit, [None] * len(space.layers))[i] = None if ids is None else ids.tolist()
    return out
