"""What a search comes to: best.json and summary.json, from its journal and what its run keeps, without the model."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tracenas.commands.search.front import FrontFile
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.settings import front_end, strategy_settings
from tracenas.config import SearchConfig
from tracenas.data.tokens import load_tokens
from tracenas.data.windows import token_file_start
from tracenas.dtypes import TORCH_NAMES
from tracenas.journal import Journal
from tracenas.pipeline.one_shot import ANCHOR, stored_anchor
from tracenas.pipeline.opening import stored_ordering
from tracenas.pipeline.refit import HELD_OUT
from tracenas.pipeline.refit.record import realisation_facts
from tracenas.pipeline.resume import recorded_base_loss
from tracenas.pipeline.rises import rises
from tracenas.pipeline.run_directory import BEST, CALIBRATION, JOURNAL, ORDERING, SELECTION, SUMMARY, holds_result
from tracenas.pipeline.session import RankedTarget, Session
from tracenas.pipeline.starts import START, Starts, stored_starts
from tracenas.pipeline.target import PruningTarget
from tracenas.proxies.combination import choose
from tracenas.resident import peak_memory
from tracenas.rundir import provenance, read_json, write_json
from tracenas.saliency.allocation import Ranked
from tracenas.saliency.allocation.solver import predicted_rises
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import STRATEGIES, SearchResult, Strategy, replayed
from tracenas.strategies.front import Front
from tracenas.strategies.selection import Contender, contenders, selected, trials_from_json

__all__ = ["Searched", "concluded", "undecided"]


RESOURCES = "resources.json"
"""In a run directory: time and memory of the process that ended the search; no journal could say them again."""

_LATER = ("comparison", "checkpoint", "checkpoints", "demo")
"""What stages after the search put into summary.json."""


@dataclass
class Searched(RankedTarget):
    """What a search's candidates are proposed from and reported with.

    Args:
        shape: sequences of the calibration and tokens of each.
        bos: whether they begin with BOS.
        dtype: of the weights, as torch calls it.
        base_loss: of the base on the calibration, nats per token.
        first: architectures that are scored first.
        ranked: the units with the run's sensitivity table; None: it has none.
    """

    shape: tuple[int, int]
    bos: bool | None
    dtype: str
    base_loss: float
    first: Sequence[Architecture]
    ranked: Ranked | None
    _front: FrontFile | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, session: Session, starts: Starts, anchor: Sequence[Architecture], loss: float) -> "Searched":
        """Of a session."""
        count, length = session.tokens.shape
        return cls(
            session.target,
            session.ordering,
            session.importance,
            shape=(count, length),
            bos=session.start.carried,
            dtype=session.dtype,
            base_loss=loss,
            first=(*anchor, *starts.architectures.values()),
            ranked=starts.ranked,
        )

    @classmethod
    def stored(cls, target: PruningTarget, config: SearchConfig) -> "Searched | None":
        """Of a run directory; None where it was left before everything was there."""
        out, anchored = config.out, config.init == "nirvana"
        needed = (CALIBRATION, ORDERING, START, *((ANCHOR,) if anchored else ()))
        loss = recorded_base_loss(out)
        if loss is None or not all((out / name).is_file() for name in needed):
            return None
        starts, (count, length) = stored_starts(target, out), load_tokens(out / CALIBRATION).shape
        ordering, importance, _ = stored_ordering(out / ORDERING, target.blocks)
        return cls(
            target,
            ordering,
            importance,
            shape=(count, length),
            bos=token_file_start(out / CALIBRATION).carried,
            dtype=TORCH_NAMES[config.dtype],
            base_loss=loss,
            first=(*([stored_anchor(target, out)] if anchored else ()), *starts.architectures.values()),
            ranked=starts.ranked,
        )

    def front_file(self, config: SearchConfig) -> FrontFile:
        """RUN/front.json, in which every cost is counted once, while the search runs and when it ends."""
        if self._front is None:
            self._front = FrontFile(self, config)
        return self._front

    def strategy(self, config: SearchConfig) -> Strategy[Architecture]:
        """The run's strategy at its beginning; without a start it proposes as it did before there was a table."""
        settings = strategy_settings(config)
        if settings.init == "given" and not self.first:
            settings = replace(settings, init="uniform")
        rises = predicted_rises(self.ranked) if self.ranked is not None and config.starts else None
        prior = replace(self.prior(), rises=rises)
        if config.front:
            lower, costs = front_end(config, self.space), config.front_costs
            return Front(self.space, settings, smallest=lower, costs=costs, prior=prior, starts=self.first)
        return STRATEGIES.get(config.strategy)(self.space, settings, prior=prior, starts=self.first)

    def conclude(self, config: SearchConfig, result: SearchResult[Architecture]) -> SearchOutcome:
        """Write best.json, and into summary.json what the search says, beside what a run's later stages say."""
        path = config.out / SUMMARY
        trials = _trials(config)
        selection = None if trials is None else selected(trials, config.prefer)
        if selection is not None:
            record = next(r for r in result.records if r["id"] == selection.chosen.id)
            best = Architecture.from_json(record["arch"], where=f"{config.out / JOURNAL}: {record['id']}")
            result = replace(result, best=self.space.validate(best), record=record)
        chosen = {} if selection is None else {"selection": selection.to_json()}
        summary = {**_summary(config, self, result), **chosen, **_rises(self.ranked, self.base_loss, result)}
        write_json(
            config.out / BEST,
            {
                "architecture": result.best.to_json(),
                "score": result.score,
                "loss": result.record["loss"],
                "id": result.best.id,
                **_ended(result),
                **chosen,
                "provenance": provenance(
                    model=config.model,
                    seed=config.seed,
                    proxy=config.proxy,
                    dtype=self.dtype,
                    bos=self.bos,
                    **realisation_facts(config.proxy, config.ridge),
                ),
            },
        )
        write_json(path, {**(read_json(path) if path.is_file() else {}), **summary})
        return SearchOutcome(config.out, config.out / BEST, result.best, result.score, summary)


def concluded(target: PruningTarget, config: SearchConfig) -> SearchOutcome | None:
    """What a search has come to whose journal is whole; None while candidates are left to score.

    Raises:
        UserError: as `run_search`, and for files of the run that are damaged or of another model.
    """
    if holds_result(config.out):
        best = config.out / BEST
        found, facts = read_json(best), read_json(config.out / SUMMARY)
        architecture = Architecture.from_json(found, where=str(best))
        facts = {key: value for key, value in facts.items() if key not in _LATER}
        return SearchOutcome(config.out, best, architecture, found["score"], facts)
    searched = Searched.stored(target, config)
    if searched is None:
        return None
    timed = config.minutes is not None and config.evaluations is not None  # ended by the clock, in any generation
    strategy = searched.strategy(config.model_copy(update={"evaluations": None}) if timed else config)
    result = replayed(strategy, Journal(config.out / JOURNAL), {"bos": searched.bos}, enough=lambda: timed)
    return None if result is None or undecided(config, result) else searched.conclude(config, result)


def undecided(config: SearchConfig, result: SearchResult[Architecture]) -> bool:
    """Whether held-out text is to decide between the best candidates, and was not asked yet about these."""
    if not (config.out / HELD_OUT).is_file() or not choose(config.proxy).additive:
        return False
    wanted = [r["id"] for r in contenders(result.records, config.elites or 1)]
    if (trials := _trials(config)) is not None:
        known = {r["id"] for r in result.records}
        return [t.id for t in trials][: len(wanted)] != wanted or not all(t.id in known for t in trials)
    return config.prefer == "stock" or len(wanted) > 1


def _trials(config: SearchConfig) -> list[Contender] | None:
    """What held-out text says; None where it was not asked."""
    path = config.out / SELECTION
    return trials_from_json(read_json(path), where=str(path)) if path.is_file() else None


def _resources(path: Path, result: SearchResult[Architecture]) -> dict[str, Any]:
    """Seconds beside the evaluations and peak memory, as they were when the search ended."""
    if not path.is_file():
        overhead = result.seconds - result.evaluation_seconds
        write_json(path, {"overhead_seconds": overhead, "peak_memory_bytes": peak_memory()})
    resources: dict[str, Any] = read_json(path)
    return resources


def _summary(config: SearchConfig, searched: Searched, result: SearchResult[Architecture]) -> dict[str, Any]:
    source, space = searched.target.source, searched.space
    count, length = searched.shape
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
            "loss": searched.base_loss,
        },
        "params": space.parameters(result.best),
        **_budgets(space, result.best),
        **({"front": _front(searched, config, result)} if config.front else {}),
        "score": result.score,
        "loss": result.record["loss"],
        "proxy": config.proxy,
        "strategy": config.strategy,
        "seed": config.seed,
        "population": config.population,
        "elites": config.elites,
        "evaluations": result.evaluated,
        **_ended(result),
        "duplicates": result.duplicates,
        "seconds": sum(float(r["seconds"]) for r in result.records),
        "calibration_tokens": count * length,
        "bos": searched.bos,
        **_measured(count, length, result),
        **_resources(config.out / RESOURCES, result),
        "kept": searched.kept_units(result.best),
        "generations": [g.to_json() for g in result.generations],
    }


def _front(searched: Searched, config: SearchConfig, result: SearchResult[Architecture]) -> dict[str, Any]:
    """The front as it is in the end."""
    return searched.front_file(config).write(result.records, [g.generation for g in result.generations])


def _budgets(space: SearchSpace, best: Architecture) -> dict[str, Any]:
    """The window in parameters, empty where there is none; limit and cost of every budget where there are others."""
    lower, limit = space.parameter_window or (None, None)
    window = {"budget": {} if limit is None else {"limit": limit, "lower": lower}}
    if [measure.name for measure in space.measures] == ["params"]:
        return window
    spent = space.costs(best)
    ends = [(m.name, m.plain, end) for m, (_, end) in zip(space.measures, space.windows, strict=True)]
    return {**window, "budgets": {n: {"limit": plain(end), "cost": plain(spent[n])} for n, plain, end in ends}}


def _ended(result: SearchResult[Architecture]) -> dict[str, Any]:
    """That the search ended before its evaluations did, if so."""
    return {} if result.settled is None else {"settled": result.settled.to_json()}


def _rises(ranked: Ranked | None, base_loss: float, result: SearchResult[Architecture]) -> dict[str, float]:
    """Predicted and measured rise of the loss of the best candidate, of MLPs alone and of equal ratios."""
    if ranked is None:
        return {}
    losses = {r["id"]: r["loss"] for r in result.records if r["loss"] is not None and "stopped" not in r}
    return rises(ranked, result.best, lambda arch: losses[arch.id] - base_loss if arch.id in losses else None)


def _measured(count: int, length: int, result: SearchResult[Architecture]) -> dict[str, int]:
    """Calibration tokens that candidates were run on, and how many of them racing stopped."""
    run = [r for r in result.records if r["status"] == "ok" and (r["loss"] is not None or "stopped" in r)]
    return {
        "measured_tokens": sum(length * int(r.get("stopped", count)) for r in run),
        "stopped": sum("stopped" in r for r in run),
    }
