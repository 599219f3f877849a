"""`tracenas run`: search → prune → compare → recover → eval → bench → report, each stage skipped where it is done."""

import logging
from collections.abc import Callable
from typing import Any

from tracenas.commands.prune.result import Pruned
from tracenas.commands.report import report
from tracenas.commands.run.front import FrontOutcome, run_front
from tracenas.commands.run.result import RunOutcome
from tracenas.commands.run.sections import (
    BENCH,
    CHECKPOINT,
    COMPARISON,
    EVALUATION,
    RECOVERED_CHECKPOINT,
    begin,
    bench_config,
    check_run,
    eval_config,
    prune_config,
    rival_directory,
)
from tracenas.commands.search.command import search
from tracenas.commands.search.settings import resolve_search
from tracenas.config import ReportConfig, RunConfig, SearchConfig, check_used
from tracenas.config.local_paths import with_absolute_paths
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.refit import HELD_OUT
from tracenas.pipeline.resume import KIND
from tracenas.pipeline.run_directory import SUMMARY, in_use
from tracenas.reporting.progress import START, phase
from tracenas.rundir import read_json, write_json
from tracenas.strategies import Progress

__all__ = ["run"]

_log = logging.getLogger("tracenas")


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
        if config.front:
            return run_front(config, source, on_generation)
        return _stages(config, source, on_generation)


def _stages(config: RunConfig, source: ModelSource, on_generation: Callable[[Progress], None] | None) -> RunOutcome:
    check_run(config, source)
    with phase(START):
        from tracenas.commands.run.recovery import prune_once, recover_all

    settings = SearchConfig(**{key: getattr(config, key) for key in SearchConfig.model_fields})
    further = {key: value for key, value in config.model_dump().items() if key not in SearchConfig.model_fields}
    searched = search(settings, source, {KIND: "run", **further}, on_generation=on_generation)
    if config.compensate == "best" and prune_config(config, searched.best, config.out).compensate == "auto":
        _log.warning("no %s: nothing to compare refits on, checkpoints are written as scored", HELD_OUT)
    begin(config, "prune")
    pruned = prune_once(config, source, searched.best, config.out)
    if begin(config, "comparison"):
        from tracenas.commands.run.comparison import compare

        comparison = compare(config, source, searched.architecture, pruned)
    else:
        comparison = read_json(config.out / COMPARISON)
    _summarise(config, pruned, comparison)
    recovered = recover_all(config, source, comparison, searched.best) if config.recover is not None else []
    comparison = _with_recovery(comparison, recovered)
    _evaluate(config, recovered)
    _bench(config, recovered)
    _summarise(config, pruned, comparison)
    return RunOutcome(searched, pruned, comparison, report(ReportConfig(run=config.out)).path, recovered)


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


def _checkpoints(config: RunConfig, recovered: list[dict[str, Any]], *, pruned: bool) -> tuple[str, ...]:
    """The base and the run's checkpoints; the pruned one also where it was recovered, if asked for."""
    paths = [config.model]
    if pruned or not recovered:
        paths.append(str(config.out / CHECKPOINT))
    paths += [str(rival_directory(config.out, row["name"]) / RECOVERED_CHECKPOINT) for row in recovered]
    return tuple(paths)


def _evaluate(config: RunConfig, recovered: list[dict[str, Any]]) -> None:
    if config.eval is not None and begin(config, "eval"):
        from tracenas.commands.evaluate import evaluate

        models = _checkpoints(config, recovered, pruned=True)
        evaluate(eval_config(config, models, out=config.out / EVALUATION))


def _bench(config: RunConfig, recovered: list[dict[str, Any]]) -> None:
    """Recovery changes no shape, so a recovered checkpoint is timed in place of the pruned one."""
    if config.bench is not None and begin(config, "bench"):
        from tracenas.commands.bench.command import bench

        models = _checkpoints(config, recovered, pruned=False)
        bench(bench_config(config, models, out=config.out / BENCH))
