"""The reference table for people: what a pruned model is worth and costs, and what it answers."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from tracenas.evaluation.suites import PAPER_AVERAGE
from tracenas.formats import fixed
from tracenas.tables import Table

__all__ = ["answers", "quality"]

SPEED_UPS = {"prefill_speedup": "prefill ×", "decode_speedup": "decode ×"}


def _accuracy(task: str, result: dict[str, Any]) -> tuple[float, float]:
    """The accuracy that TraceNAS Table 2 averages (where the task is in it) and its standard error."""
    name = PAPER_AVERAGE.get(task, "acc")
    name = name if name in result else "acc"
    return result[name], result[f"{name}_stderr"]


def quality(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Table:
    """Parameters, perplexities (`columns`), speed-ups over the base, search time and mean accuracy of every row."""
    lines = []
    for row in rows:
        cells = [*_name(row), f"{row['params']:,}" if "params" in row else fixed(None)]
        cells += [_perplexity(row.get(column)) for column in columns]
        cells += [fixed(row.get(key)) for key in SPEED_UPS]
        cells += [fixed(row.get("search_seconds"), 0), _with_error(*_mean(row)) if "tasks" in row else fixed(None)]
        lines.append(tuple(cells))
    head = ("row", "budget", "parameters", *columns, *SPEED_UPS.values(), "search, s", "mean accuracy")
    return Table("", head, tuple(lines))


def answers(rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy and standard error of every row that answered, task by task."""
    answered = [row for row in rows if "tasks" in row]
    tasks = list(dict.fromkeys(task for row in answered for task in row["tasks"]))
    lines = [(*_name(r), *(_with_error(*_accuracy(t, r["tasks"][t])) for t in tasks)) for r in answered]
    return Table("", ("row", "budget", *tasks), tuple(lines))


def _name(row: dict[str, Any]) -> tuple[str, str]:
    return row["row"], row["budget"]


def _perplexity(value: float | None) -> str:
    return fixed(value) if value is None or value < 1000 else f"{value:,.0f}"


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


def _mean(row: dict[str, Any]) -> tuple[float, float]:
    """Mean accuracy; its error over questions, the tasks' being independent of each other."""
    found = [_accuracy(task, result) for task, result in row["tasks"].items()]
    return statistics.mean(value for value, _ in found), math.hypot(*(error for _, error in found)) / len(found)
