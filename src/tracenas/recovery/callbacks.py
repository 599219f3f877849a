"""What a run says: `log.jsonl`, and the steps on the terminal."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tracenas.journal import Journal
from tracenas.rundir import atomic_path

__all__ = ["RunLog", "cut_log"]

_NAMES = {
    "loss": "loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
    "tokens": "tokens",
    "tokens_per_second": "tokens_per_second",
    "mfu": "mfu",
    "eval_perplexity": "perplexity",
    "eval_nll": "nll",
    "eval_validation_perplexity": "validation_perplexity",
    "eval_validation_nll": "validation_nll",
}


class RunLog(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Writes what the trainer logs to a journal, and reports every step.

    Args:
        path: log.jsonl; only the main process writes.
        report: told how many steps of how many are done.
        on_record: called with every record.
    """

    def __init__(
        self,
        path: Path,
        *,
        report: Callable[[int, int], None] | None = None,
        on_record: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._journal = Journal(path)
        self._report = report
        self._on_record = on_record

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One more step."""
        if state.is_world_process_zero and self._report is not None:
            self._report(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One more record."""
        if not state.is_world_process_zero or not logs or not {"loss", "eval_validation_nll"} & set(logs):
            return
        record = {"step": state.global_step}
        record |= {name: _finite(logs[key]) for key, name in _NAMES.items() if key in logs}
        self._journal.append(record)
        if self._on_record is not None:
            self._on_record(record)


def cut_log(path: Path, step: int) -> None:
    """Drop records behind `step`, from whose checkpoint the run goes on; all at step 0, where it begins again."""
    records = Journal(path).read()
    earlier = [record for record in records if step > 0 and record.get("step", 0) <= step]
    if len(earlier) < len(records):
        text = "".join(json.dumps(record) + "\n" for record in earlier)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
