"""Which tasks, with how many shots, and what is averaged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["PAPER_AVERAGE", "PAPER_SHOTS", "SUITES", "Average", "Request", "TaskResult", "paper_average", "requests"]

PAPER_SHOTS = {
    "arc_easy": 0,
    "logiqa": 0,
    "piqa": 0,
    "sciq": 0,
    "boolq": 0,
    "mmlu": 5,
    "winogrande": 5,
    "hellaswag": 10,
    "arc_challenge": 25,
}
"""Shots per task (TraceNAS §4.1, 'Evaluation Benchmarks')."""

PAPER_AVERAGE = {
    "piqa": "acc",
    "winogrande": "acc",
    "arc_easy": "acc",
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    "sciq": "acc",
    "logiqa": "acc_norm",
    "boolq": "acc",
}
"""The eight reasoning tasks of Tables 2 and 3 and the metric of each.

The paper does not name the metrics. These are the convention of the work it compares with (ShearedLLaMA,
DarwinLM), and the only ones that agree with Table 2's row for Llama-2-7B (ARC-C 52.81, HellaSwag 78.96 and
LogiQA 29.80 are that model's normalised accuracies; PIQA 77.69, ARC-E 76.34 and SciQ 93.80 its plain ones).
"""

SUITES = {"paper": PAPER_SHOTS}


@dataclass(frozen=True)
class Request:
    """A task and its shots; None for the task's own default."""

    name: str
    shots: int | None


@dataclass(frozen=True)
class TaskResult:
    """What a model reached on a task.

    Args:
        metrics: as lm-eval names them: `acc`, `acc_stderr`, `acc_norm`, …; None where lm-eval has no number.
        n: questions answered.
        shots: examples before every question.
        truncated: answers whose prompt was longer than the model's positions and lost its beginning.
        split: which split was evaluated, '' where unknown.
        shots_from: where the examples are from, '' without shots.
        subtasks: of a group (MMLU's subjects).
    """

    metrics: Mapping[str, float | None]
    n: int
    shots: int
    truncated: int = 0
    split: str = ""
    shots_from: str = ""
    subtasks: Mapping[str, "TaskResult"] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        out: dict[str, object] = {**self.metrics, "n": self.n, "shots": self.shots, "truncated": self.truncated}
        if self.split:
            out["split"] = self.split
        if self.shots_from:
            out["shots_from"] = self.shots_from
        if self.subtasks:
            out["subtasks"] = {name: sub.to_json() for name, sub in self.subtasks.items()}
        return out


@dataclass(frozen=True)
class Average:
    """The paper's average: mean over the eight reasoning tasks, without MMLU.

    Args:
        value: the mean, 0 to 1.
        stderr: of the mean, the tasks taken as independent.
    """

    value: float
    stderr: float | None

    def to_json(self) -> dict[str, object]:
        """For `--json`, with what was averaged."""
        return {
            "name": "the paper's average: eight reasoning tasks, without MMLU (TraceNAS Tables 2 and 3)",
            "value": self.value,
            "stderr": self.stderr,
            "metrics": PAPER_AVERAGE,
        }


def paper_average(results: Mapping[str, TaskResult]) -> Average | None:
    """The paper's average; None unless all eight tasks are there with the paper's shots."""
    values, errors = [], []
    for name, metric in PAPER_AVERAGE.items():
        result = results.get(name)
        if result is None or result.shots != PAPER_SHOTS[name]:
            return None
        value, error = result.metrics.get(metric), result.metrics.get(f"{metric}_stderr")
        if value is None:
            return None
        values.append(value)
        errors.append(error)
    measured = [e for e in errors if e is not None]
    total = math.sqrt(math.fsum(e * e for e in measured)) / len(errors) if len(measured) == len(errors) else None
    return Average(math.fsum(values) / len(values), total)


def requests(tasks: str | None, suite: str | None, shots: int | None = None) -> tuple[Request, ...]:
    """The tasks of a suite and of a list such as `piqa,arc_challenge:25`, in order, each once.

    Args:
        shots: for every task that names none itself (also those of the suite).

    Raises:
        UserError: for an unknown suite, an empty name or a number of shots that is none.
    """
    shots_by_task: dict[str, int | None] = {}
    if suite is not None:
        if suite not in SUITES:
            raise UserError(f"unknown suite '{suite}': {did_you_mean(suite, list(SUITES))}")
        shots_by_task.update({name: count if shots is None else shots for name, count in SUITES[suite].items()})
    for part in (tasks or "").split(",") if tasks is not None else ():
        name, colon, count = part.strip().partition(":")
        if not name:
            raise UserError(f"tasks '{tasks}': expected names separated by commas, such as piqa,arc_challenge:25")
        if colon and not count.isdigit():
            raise UserError(f"tasks '{tasks}': '{count}' is not a number of shots (as in arc_challenge:25)")
        shots_by_task[name] = int(count) if colon else shots_by_task.get(name, shots)
    return tuple(Request(name, count) for name, count in shots_by_task.items())
