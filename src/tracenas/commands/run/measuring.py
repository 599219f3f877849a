"""The last stages of a run: quality and speed of the base and of every checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from tracenas.commands.run.sections import bench_config, eval_config
from tracenas.commands.run.steps import BENCH, EVALUATION, begin
from tracenas.config import RunConfig
from tracenas.rundir import read_json

__all__ = ["bench_all", "evaluate_all"]

Row = Mapping[str, Any]


def evaluate_all(config: RunConfig, models: Sequence[str]) -> dict[str, Row]:
    """RUN/evaluation.json by model; nothing where the run has no section `eval`."""
    if config.eval is None:
        return {}
    if begin(config, "eval"):
        from tracenas.commands.evaluate import evaluate

        evaluate(eval_config(config, tuple(models), out=config.out / EVALUATION))
    rows = read_json(config.out / EVALUATION)["results"]
    return dict(zip(models, map(_without_name, rows), strict=True))


def bench_all(config: RunConfig, models: Sequence[str]) -> dict[str, list[Row]]:
    """RUN/bench.json by model, a row per batch size: all in turns, against the first of them."""
    if config.bench is None:
        return {}
    if begin(config, "bench"):
        from tracenas.commands.bench.command import bench

        bench(bench_config(config, tuple(models), out=config.out / BENCH))
    rows = [_without_name(row) for row in read_json(config.out / BENCH)["models"]]
    return {model: rows[place :: len(models)] for place, model in enumerate(models)}


def _without_name(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "model"}
