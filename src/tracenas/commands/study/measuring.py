"""What a study asks of one architecture, in this process or in several: every proxy's score, and the targets."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tracenas.commands.study.targets import StudyMeasurer
from tracenas.evaluation.harness import Harness
from tracenas.evaluation.suites import PAPER_AVERAGE, requests
from tracenas.scoring.panel import Panel
from tracenas.space.architecture import Architecture

__all__ = ["StudyWork", "TaskAccuracy", "measuring"]


@dataclass
class TaskAccuracy:
    """A model's accuracy by task: the task's metric in the literature on pruning, else plain accuracy.

    Args:
        tasks, task_data, limit: as the settings name them.
    """

    tokenizer: Any
    tasks: str | None
    task_data: Any
    limit: int | None
    _harness: Harness | None = field(default=None, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the tasks itself."""
        return {**self.__dict__, "_harness": None}

    def open(self) -> Harness:
        """The tasks, read once.

        Raises:
            UserError: if they cannot be had.
        """
        if self._harness is None:
            self._harness = Harness(requests(self.tasks, None, None), self.task_data)
        return self._harness

    def __call__(self, model: Any) -> dict[str, float]:
        """Accuracy by task."""
        results = self.open().run(model, self.tokenizer, limit=self.limit)
        out = {}
        for name, result in results.items():
            value = result.metrics.get(PAPER_AVERAGE.get(name, "acc"))
            if value is None:
                raise ValueError(f"task {name} has no accuracy")
            out[name] = float(value)
        return out


@dataclass(frozen=True)
class StudyWork:
    """What one architecture is scored and measured with."""

    panel: Panel
    measurer: StudyMeasurer

    def measure(self, arch: Architecture) -> dict[str, Any]:
        """Scores, targets, and the seconds that each took."""
        began = time.perf_counter()
        scores = {name: asdict(score) for name, score in self.panel.measure(arch).items()}
        scored = time.perf_counter()
        targets = self.measurer.measure(arch)
        ended = time.perf_counter()
        return {"scores": scores, "targets": targets, "seconds": {"scores": scored - began, "targets": ended - scored}}


def measuring(work: StudyWork) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Answers an architecture, as JSON, with what there is to say of it."""
    return lambda arch: work.measure(Architecture.from_json(arch, where="task"))
