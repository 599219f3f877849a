"""`tracenas run`: search → prune → compare → recover → eval → bench → report, each stage skipped where it is done."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracenas.commands.prune.result import Pruned
from tracenas.commands.report import report
from tracenas.commands.run.front import run_front
from tracenas.commands.run.measuring import bench_all, evaluate_all
from tracenas.commands.run.result import FrontOutcome, RunOutcome
from tracenas.commands.run.searching import search_of, warn_as_scored
from tracenas.commands.run.sections import check_run
from tracenas.commands.run.steps import COMPARISON, begin
from tracenas.commands.run.written import Written, models, rival_directory
from tracenas.commands.search.settings import resolve_search
from tracenas.config import ReportConfig, RunConfig, check_used
from tracenas.config.local_paths import with_absolute_paths
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.run_directory import SUMMARY, in_use
from tracenas.reporting.progress import START, phase
from tracenas.rundir import read_json, write_json
from tracenas.strategies import Progress

__all__ = ["run"]

_REPEATED = ("uniform", "random 1")
"""Rivals that are recovered, too, where that is asked for."""


def run(config: RunConfig, *, on_generation: Callable[[Progress], None] | None = None) -> RunOutcome | FrontOutcome:
    """Every stage that the settings ask for, in `config.out`; `--resume` goes on where an interrupted run stopped.

    Args:
        on_generation: told the state of the search after every generation.

    Raises:
        UserError: for wrong input, that of later stages included, before any work is done.
    """
    config = with_absolute_paths(config)
    source = open_source(config.model)
    config = resolve_search(config, source)
    check_used(config)
    with in_use(config.out):
        return (run_front if config.front else _one_size)(config, source, on_generation)


def _one_size(config: RunConfig, source: ModelSource, on_generation: Callable[[Progress], None] | None) -> RunOutcome:
    check_run(config, source)
    with phase(START):
        from tracenas.commands.run.recovery import prune_once, recover_all

    searched = search_of(config, source, on_generation)
    warn_as_scored(config, searched)
    found = Written("found", config.out, searched.best)
    begin(config, "prune")
    pruned = prune_once(config, source, found)
    if begin(config, "comparison"):
        from tracenas.commands.run.comparison import compare

        comparison = compare(config, source, searched.architecture, pruned)
    else:
        comparison = read_json(config.out / COMPARISON)
    _summarise(config, pruned, comparison)
    written = [found, *_rivals(config, comparison, searched.best)]
    recovered = [] if config.recover is None else recover_all(config, source, written)
    comparison = _with_recovery(comparison, recovered)
    evaluate_all(config, models(config, written, pruned=("found",)))
    bench_all(config, models(config, written))  # recovery changes no shape: a recovered one for the pruned one
    _summarise(config, pruned, comparison)
    return RunOutcome(searched, pruned, comparison, report(ReportConfig(run=config.out)).path, recovered)


def _rivals(config: RunConfig, comparison: list[dict[str, Any]], best: Path) -> list[Written]:
    """Those that are recovered, in files of the form of best.json: pruned like the found one, and checked likewise."""
    written = []
    for row in comparison if config.recover_rivals else []:
        if row["name"] in _REPEATED:
            path = config.out / f"{row['name'].replace(' ', '-')}.json"
            record = {"architecture": row["arch"], "score": row["score"], "loss": row["loss"]}
            record["provenance"] = read_json(best)["provenance"]
            if not path.is_file() or read_json(path) != record:
                write_json(path, record)
            written.append(Written(row["name"], rival_directory(config.out, row["name"]), path))
    return written


def _summarise(config: RunConfig, pruned: Pruned, comparison: list[dict[str, Any]]) -> None:
    """Put the comparison so far into summary.json, so that a report can be drawn while the rest is running."""
    summary = {**read_json(config.out / SUMMARY), "comparison": comparison, "checkpoint": pruned.to_json()}
    write_json(config.out / SUMMARY, summary)


def _with_recovery(comparison: list[dict[str, Any]], recovered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The comparison's rows with what their checkpoints reached before and after recovery."""
    by_name = {row["name"]: row for row in recovered}
    realisation = next((row["checkpoint"]["realisation"] for row in comparison if "checkpoint" in row), None)
    rows = []
    for row in comparison:
        if (recovery := by_name.get(row["name"])) is not None:
            row = {**row, "recovered": recovery["recovered"]}
            if realisation is not None and "checkpoint" not in row:
                row["checkpoint"] = {"realisation": realisation, **recovery["pruned"]}
        rows.append(row)
    return rows
