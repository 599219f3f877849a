"""`tracenas run --front`: a search of all sizes, and a checkpoint of it at every chosen one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.budgets import BUDGETS
from tracenas.budgets.sizes import parse_limit
from tracenas.commands.best.command import best
from tracenas.commands.prune.result import Pruned
from tracenas.commands.report import report
from tracenas.commands.run.sections import CHECKPOINT, CHECKPOINTS, PRUNED, begin, check_run, eval_config
from tracenas.commands.search.command import search
from tracenas.commands.search.result import SearchOutcome
from tracenas.commands.search.settings import front_end
from tracenas.config import BestConfig, ReportConfig, RunConfig, SearchConfig
from tracenas.errors import UserError
from tracenas.formats import counted, decimal
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.resume import KIND
from tracenas.pipeline.run_directory import BEST, SUMMARY
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table, print_table
from tracenas.rundir import make_directory, read_json, write_json
from tracenas.strategies import Progress

__all__ = ["FrontOutcome", "run_front"]

_FOLDER = "checkpoints"
"""In the run directory: one folder per size."""


@dataclass(frozen=True)
class FrontOutcome(Outcome):
    """A front and its checkpoints.

    Args:
        checkpoints: a row for the base and one per size: costs, losses, perplexity, and where it is.
        cost: that sizes are of.
    """

    search: SearchOutcome
    checkpoints: list[dict[str, Any]]
    cost: str
    report: Path

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"search": self.search.to_json(), "checkpoints": self.checkpoints, "report": str(self.report)}

    def records(self) -> list[dict[str, Any]]:
        """The checkpoints."""
        return self.checkpoints

    def tables(self) -> list[Table]:
        """The search and the checkpoints."""
        rows = [
            (
                str(row["size"]),
                counted(row["costs"][self.cost]),
                decimal(row["loss"]),
                decimal(row["perplexity"]),
                str(row.get("written", "")),
                str(row.get("path", "")),
            )
            for row in self.checkpoints
        ]
        names = ("size", self.cost, "calibration loss", "perplexity", "realisation", "checkpoint")
        return [*self.search.tables(), Table("checkpoints of the front", names, rows)]

    def show(self) -> None:
        """The tables and where the report is, on stdout."""
        for table in self.tables():
            print_table(table)
        print(f"report      {self.report}")


def run_front(
    config: RunConfig, source: ModelSource, on_generation: Callable[[Progress], None] | None = None
) -> FrontOutcome:
    """Search all sizes, then write and measure a checkpoint of each of `config.checkpoints`; what is there is kept.

    Raises:
        UserError: for wrong input, that of later stages included, before any work is done.
    """
    check_run(config, source)
    _check_sizes(config, source)
    with phase(START):
        from tracenas.commands.run.recovery import prune_once

    settings = SearchConfig(**{key: getattr(config, key) for key in SearchConfig.model_fields})
    further = {key: value for key, value in config.model_dump().items() if key not in SearchConfig.model_fields}
    searched = search(settings, source, {KIND: "run", **further}, on_generation=on_generation)
    path = config.out / CHECKPOINTS
    rows: list[dict[str, Any]] = [] if begin(config, "checkpoints") else read_json(path)
    if [row["size"] for row in rows[1:]] != list(config.sizes_of_checkpoints):
        pruned = [
            (size, home, prune_once(config, source, _chosen(config, size, home), home))
            for size, home in ((size, _home(config, size)) for size in config.sizes_of_checkpoints)
        ]
        rows = _measured(config, source, pruned)
        write_json(path, rows)
    write_json(config.out / SUMMARY, {**read_json(config.out / SUMMARY), "checkpoints": rows})
    return FrontOutcome(searched, rows, config.front_costs[0], report(ReportConfig(run=config.out)).path)


def _check_sizes(config: RunConfig, source: ModelSource) -> None:
    """Refuse sizes that are none, or lie below the front.

    Raises:
        UserError: naming the size.
    """
    space, name = resolve_budgets(source, config, config.out if config.resume else None).space, config.front_costs[0]
    lower, number = front_end(config, space), space.measures[0].number
    for size in config.sizes_of_checkpoints:
        limit = parse_limit(name, BUDGETS.get(name), size, space.cost(space.base))
        if limit < lower:
            raise UserError(
                f"checkpoints {size}: {number(limit)} {name} are below the front's lower end, {number(lower)}"
            )


def _home(config: RunConfig, size: str) -> Path:
    return config.out / _FOLDER / f"{config.front_costs[0]}-{size.removesuffix('%')}"


def _chosen(config: RunConfig, size: str, home: Path) -> Path:
    """The file of the best architecture of a size, as `tracenas best` says it; one that is pruned already stays."""
    file = home / BEST
    if not ((home / PRUNED).is_file() and file.is_file()):
        make_directory(home)
        best(BestConfig(run=config.out, budget=(f"{config.front_costs[0]}={size}",), out=file))
    return file


def _measured(config: RunConfig, source: ModelSource, pruned: list[tuple[str, Path, Pruned]]) -> list[dict[str, Any]]:
    """A row for the base and one per checkpoint, with its perplexity on the held-out text."""
    from tracenas.commands.evaluate import evaluate

    models = (config.model, *(str(home / CHECKPOINT) for _, home, _ in pruned))
    measured: list[Mapping[str, Any]] = evaluate(eval_config(config, models, section={})).to_json()
    found = read_json(config.out / SUMMARY)
    base = {"size": "base", "loss": found["base"]["loss"], "costs": _of_the_base(config, source)}
    rows: list[dict[str, Any]] = [{**base, **_figures(measured[0])}]
    for (size, home, one), figures in zip(pruned, measured[1:], strict=True):
        chosen = read_json(home / BEST)
        kept = {key: chosen[key] for key in ("id", "score", "loss", "costs")}
        rows.append({"size": size, **kept, **_figures(figures), "written": one.written, "path": str(home / CHECKPOINT)})
    return rows


def _of_the_base(config: RunConfig, source: ModelSource) -> dict[str, int | float]:
    space = resolve_budgets(source, config, config.out).space
    spent = space.costs(space.base)
    return {measure.name: measure.plain(spent[measure.name]) for measure in space.measures}


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("params", "perplexity", "nll", "tokens")}
