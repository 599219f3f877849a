"""Task results of several models side by side."""

import math
from collections.abc import Mapping, Sequence

from tracenas.evaluation.suites import TaskResult, paper_average
from tracenas.reporting.terminal import Table

__all__ = ["evaluation_rows", "finite"]


def finite(value: float) -> float | None:
    """The value, None for what JSON cannot say."""
    return value if math.isfinite(value) else None


def evaluation_rows(
    models: Sequence[str], parameters: Sequence[int], tasks: Sequence[Mapping[str, TaskResult]]
) -> Table:
    """A row per task and metric, a column per model."""
    rows: list[tuple[str, ...]] = [("parameters", "", "", *(f"{p:,}" for p in parameters))]
    for name, first in tasks[0].items():
        shown = [m for m in first.metrics if not m.partition(",")[0].endswith("_stderr")]
        for metric in shown:
            label = name if metric == shown[0] else ""
            shots = str(first.shots) if label else ""
            rows.append((label, shots, metric, *(_cell(of[name], metric) for of in tasks)))
    averages = [paper_average(of) for of in tasks]
    if all(a is not None for a in averages):
        cells = (_with_error(a.value, a.stderr) for a in averages if a is not None)
        rows.append(("the paper's average (8 tasks, no MMLU)", "", "", *cells))
    return Table("", ("task", "shots", "metric", *models), rows)


def _cell(result: TaskResult, metric: str) -> str:
    value = result.metrics.get(metric)
    plain, _, kind = metric.partition(",")
    error = result.metrics.get(f"{plain}_stderr" + (f",{kind}" if kind else ""))
    return "–" if value is None else _with_error(value, error)


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")
