"""`tracenas best`: the best candidate that a run has measured, under budgets that it need not have been made for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tracenas.budgets import BUDGETS
from tracenas.budgets.sizes import parse_limit
from tracenas.commands.best.result import BestFound
from tracenas.commands.stored import StoredRun
from tracenas.config import BestConfig, SearchConfig
from tracenas.dtypes import TORCH_NAMES
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs
from tracenas.pipeline.refit.record import realisation_facts
from tracenas.pipeline.run_directory import JOURNAL, PROPOSALS, SELECTION
from tracenas.pipeline.target import PruningTarget, resolve_target
from tracenas.reporting.progress import START, phase
from tracenas.rundir import check_own_json, provenance, read_json, write_json
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import is_number
from tracenas.strategies.selection import trials_from_json

__all__ = ["best"]


def best(config: BestConfig) -> BestFound:
    """The candidate with the best score among those that the run has measured to the end and that meet the budgets.

    Where that is one of those that held-out text has decided between, the best of them there that meets the budgets.

    Reads the run's journal and the headers of its model; without `evaluations` torch is not imported.

    Raises:
        UserError: for a directory that is of no search, budgets that are none, and where no candidate meets them.
    """
    run = StoredRun.read(config.run)
    if config.out is not None:
        check_own_json(config.out, "best", ("architecture", "costs", "provenance"))
    journal = _Journal.of(run, config)
    if config.evaluations:
        journal.extend(config.budgets, config.evaluations)
    record, arch = journal.best(config.budgets)
    found = BestFound(run.path, arch, float(record["score"]), record.get("loss"), journal.costs.all(arch), config.out)
    if config.out is not None:
        write_json(config.out, {**found.facts(), "provenance": journal.provenance(record)})
    return found


@dataclass(frozen=True)
class _Journal:
    """What a search has measured.

    Args:
        search: its settings.
        costs: of its architectures.
    """

    run: StoredRun
    search: SearchConfig
    costs: Costs

    @classmethod
    def of(cls, run: StoredRun, config: BestConfig) -> "_Journal":
        """A run's; what its model is served as by the run's settings, unless others are asked for."""
        from tracenas.commands import COMMANDS

        if run.command not in ("search", "run"):
            raise UserError(f"run {config.run}: of `tracenas {run.command}`; accepted: runs of search and run")
        search = run.build(COMMANDS[run.command].kind)
        source = open_source(search.model)
        target = resolve_target(source, search)
        served = ("context", "serve_batch", "outtype", "prompt", "latency", "latency_anyway")
        asked = search.model_copy(update={n: getattr(config, n) for n in served if config.asks_for(n)})
        return cls(run, search, Costs.of(target, asked, None if config.latency else run.path))

    def best(self, budgets: Mapping[str, str]) -> tuple[Mapping[str, Any], Architecture]:
        """The record and the architecture of the best candidate under these budgets.

        Raises:
            UserError: if none meets them.
        """
        layers, base = self.costs.space.layers, self.costs.space.base
        measures = [self.costs.measure(name) for name in budgets]
        limits = [
            parse_limit(m.name, BUDGETS.get(m.name), text, m.total(layers, base))
            for m, text in zip(measures, budgets.values(), strict=True)
        ]
        lowest: list[int | None] = [None] * len(measures)
        held_out = self._held_out()
        best: tuple[Mapping[str, Any], Architecture] | None = None
        for record in sorted(self._measured(), key=lambda r: -float(r["score"])):
            if best is not None and record["id"] not in held_out:
                continue
            arch = self._architecture(record)
            spent = [measure.total(layers, arch) for measure in measures]
            if all(cost <= limit for cost, limit in zip(spent, limits, strict=True)):
                if best is None or held_out[record["id"]] < held_out[best[0]["id"]]:
                    best = record, arch
                if record["id"] not in held_out:  # the best score is of one that held-out text was not asked about
                    break
            lowest = [cost if low is None else min(low, cost) for low, cost in zip(lowest, spent, strict=True)]
        if best is not None:
            return best
        raise UserError(self._nothing(dict(zip(budgets, zip(limits, lowest, strict=True), strict=True))))

    def _held_out(self) -> Mapping[str, float]:
        """What the search's best candidates came to on held-out text, where that has decided between them, by id."""
        path = self.run.path / SELECTION
        trials = trials_from_json(read_json(path), where=str(path)) if path.is_file() else []
        return {trial.id: trial.mean for trial in trials}

    def _measured(self) -> Iterator[Mapping[str, Any]]:
        """Candidates with a score on all of the run's text: what racing stopped has an estimate of a part only."""
        for file in (self.run.path / JOURNAL, self.run.path / PROPOSALS):
            for number, record in enumerate(Journal(file).read(), start=1):
                if not record.keys() >= {"arch", "id"} or not (
                    record.get("score") is None or is_number(record["score"])
                ):
                    raise UserError(f"{file}: line {number}: no candidate with its score")
                if record.get("score") is not None and "stopped" not in record:
                    yield record

    def extend(self, budgets: Mapping[str, str], count: int) -> None:
        """Measure further candidates under these budgets.

        Raises:
            UserError: if nothing meets the budgets, and as `measure`.
        """
        if not budgets:
            raise UserError("evaluations needs a budget that candidates are proposed under: --params or --budget")
        space = self.costs.limited(budgets, self.search.tolerance)
        came_to = {
            name: value
            for name, value in self.run.settings.items()
            if name in type(self.search).model_fields and getattr(self.search, name) in (None, "auto")
        }
        config = self.search.model_copy(update={**came_to, "out": self.run.path})
        known = [(float(record["score"]), self._architecture(record)) for record in self._measured()]
        with phase(START):
            from tracenas.commands.best.measuring import measure

        measure(PruningTarget(self.costs.model.source, self.costs.model.blocks, space), config, known, count)

    def _architecture(self, record: Mapping[str, Any]) -> Architecture:
        where = f"{self.run.path}: candidate {record.get('id')}"
        return self.costs.space.validate(Architecture.from_json(record["arch"], where=where), where=where)

    def _nothing(self, ends: Mapping[str, tuple[int, int | None]]) -> str:
        if any(low is None for _, low in ends.values()) or not ends:
            return f"run {self.run.path}: no candidate is measured yet"
        said = []
        for name, (limit, low) in ends.items():
            number = self.costs.measure(name).number
            said.append(f"{name} {number(limit)} (the lowest there: {number(low or 0)})")
        each = ", ".join(said)
        return (
            f"run {self.run.path}: no candidate that it has measured meets {each}; search with these budgets, or ask "
            "for others"
        )

    def provenance(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What the run's own best.json says of itself, and where the run is."""
        settings = self.run.settings  # with what `auto` came to
        dtype, proxy = str(settings.get("dtype")), str(settings.get("proxy"))
        return provenance(
            model=self.search.model,
            seed=self.search.seed,
            proxy=proxy,
            dtype=TORCH_NAMES.get(dtype, dtype),
            bos=record.get("bos"),
            **realisation_facts(proxy, self.search.ridge),
            run=str(self.run.path),
        )
