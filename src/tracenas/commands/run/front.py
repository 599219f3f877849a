"""`tracenas run --front`: search all sizes → a checkpoint at every chosen one → recover → eval → bench → report."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tracenas.commands.best.command import best
from tracenas.commands.prune.result import Pruned
from tracenas.commands.report import report
from tracenas.commands.run.measuring import bench_all, evaluate_all
from tracenas.commands.run.result import FrontOutcome
from tracenas.commands.run.searching import search_of, warn_as_scored
from tracenas.commands.run.sections import check_run, eval_config
from tracenas.commands.run.steps import begin
from tracenas.commands.run.written import CHECKPOINTS, PRUNED, Written, models, size_directory
from tracenas.commands.search.settings import checkpoint_limits
from tracenas.config import BestConfig, ReportConfig, RunConfig
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.budgets import resolve_budgets
from tracenas.pipeline.run_directory import BEST, SUMMARY
from tracenas.reporting.progress import START, phase
from tracenas.rundir import make_directory, read_json, write_json
from tracenas.strategies import Progress

__all__ = ["run_front"]

Rows = list[dict[str, Any]]


def run_front(
    config: RunConfig, source: ModelSource, on_generation: Callable[[Progress], None] | None = None
) -> FrontOutcome:
    """Search all sizes, then write a checkpoint of each of `config.checkpoints` and take all through the other stages.

    Raises:
        UserError: for wrong input, that of later stages included, before any work is done.
    """
    check_run(config, source)
    checkpoint_limits(config, resolve_budgets(source, config, config.out if config.resume else None).space)
    with phase(START):
        from tracenas.commands.run.recovery import prune_once, recover_all

    searched = search_of(config, source, on_generation)
    warn_as_scored(config, searched)
    begin(config, "checkpoints")
    written = [_chosen(config, size) for size in config.sizes_of_checkpoints]
    pruned = [prune_once(config, source, one) for one in written]
    rows = _measured(config, source, written, pruned)
    _summarise(config, rows)
    recovered = [] if config.recover is None else recover_all(config, source, written)
    _summarise(config, rows := _with_recovery(rows, recovered))
    last = models(config, written)
    found = evaluate_all(config, models(config, written, pruned=config.sizes_of_checkpoints))
    _summarise(config, rows := _beside(rows, "eval", last, found))
    timed = bench_all(config, last)  # recovery changes no shape: a recovered checkpoint stands for the pruned one
    _summarise(config, rows := _beside(rows, "bench", last, timed))
    return FrontOutcome(searched, rows, report(ReportConfig(run=config.out)).path, recovered)


def _chosen(config: RunConfig, size: str) -> Written:
    """The best architecture of a size, as `tracenas best` says it; one that is pruned already stays."""
    home = size_directory(config, size)
    one = Written(size, home, home / BEST)
    if not ((home / PRUNED).is_file() and one.arch.is_file()):
        make_directory(home)
        best(BestConfig(run=config.out, budget=(f"{config.front_costs[0]}={size}",), out=one.arch))
    return one


def _measured(config: RunConfig, source: ModelSource, written: Sequence[Written], pruned: Sequence[Pruned]) -> Rows:
    """A row for the base and one per checkpoint, with its perplexity on the held-out text; what is known stays."""
    path = config.out / CHECKPOINTS
    stored: Rows = read_json(path) if path.is_file() else []
    known = {row["size"]: row for row in stored}
    places = {"base": config.model, **{one.name: str(one.pruned) for one in written}}
    if new := {name: place for name, place in places.items() if name not in known}:
        from tracenas.commands.evaluate import evaluate

        figures = evaluate(eval_config(config, tuple(new.values()), section={})).records()
        known |= {name: _figures(row) for name, row in zip(new, figures, strict=True)}
    base = {"size": "base", "loss": read_json(config.out / SUMMARY)["base"]["loss"]}
    rows: Rows = [{**base, "costs": _of_the_base(config, source), **_figures(known["base"])}]
    for one, result in zip(written, pruned, strict=True):
        chosen = read_json(one.arch)
        kept = {key: chosen[key] for key in ("id", "score", "loss", "costs")}
        facts = {"written": result.written, "path": str(one.pruned)}
        rows.append({"size": one.name, **kept, **_figures(known[one.name]), **facts})
    if rows != stored:
        write_json(path, rows)
    return rows


def _of_the_base(config: RunConfig, source: ModelSource) -> dict[str, int | float]:
    space = resolve_budgets(source, config, config.out).space
    spent = space.costs(space.base)
    return {measure.name: measure.plain(spent[measure.name]) for measure in space.measures}


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("params", "perplexity", "nll", "tokens")}


def _with_recovery(rows: Rows, recovered: Rows) -> Rows:
    known = {row["name"]: {**row["recovered"], "path": row["path"]} for row in recovered}
    return [{**row, "recovered": known[row["size"]]} if row["size"] in known else row for row in rows]


def _beside(rows: Rows, stage: str, last: Sequence[str], figures: Mapping[str, Any]) -> Rows:
    """The rows with what a stage measured of what each came to, if the run has that stage."""
    return [{**row, stage: figures[model]} for row, model in zip(rows, last, strict=True)] if figures else rows


def _summarise(config: RunConfig, rows: Rows) -> None:
    """Put the checkpoints so far into summary.json, so that a report can be drawn while the rest is running."""
    write_json(config.out / SUMMARY, {**read_json(config.out / SUMMARY), "checkpoints": rows})
