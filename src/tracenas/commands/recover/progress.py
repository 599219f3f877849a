"""What `tracenas recover` shows while it trains, and where TensorBoard's files go."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tracenas.config import RecoverConfig

__all__ = ["progress", "tensorboard"]


@contextmanager
def tensorboard(out: Path) -> Iterator[None]:
    """Where transformers' integration writes, unless the environment says otherwise."""
    if "TENSORBOARD_LOGGING_DIR" in os.environ:
        yield
        return
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(out / "tensorboard")
    try:
        yield
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]


_Reports = tuple[Callable[[int], None], Callable[[Mapping[str, Any]], None]]


def progress(config: RecoverConfig, done: int, *, quiet: bool) -> AbstractContextManager[_Reports]:
    """Advances per step and, where nobody watches a terminal, lines: what is told of a step and of a record."""
    if quiet:
        return nullcontext((lambda step: None, lambda record: None))

    @contextmanager
    def shown() -> Iterator[_Reports]:
        from tracenas.reporting.progress import stage_progress

        assert config.max_steps is not None
        step_now, last_line = done, 0.0
        with stage_progress(f"recover ({config.method})", config.max_steps) as advance:
            advance(done)

            def on_step(step: int) -> None:
                nonlocal step_now
                advance(step - step_now)
                step_now = step

            def on_record(record: Mapping[str, Any]) -> None:
                nonlocal last_line
                if sys.stderr.isatty() or (time.monotonic() - last_line < 5 and "validation_nll" not in record):
                    return
                last_line = time.monotonic()
                values = (f"{k} {v:.6g}" for k, v in record.items() if k != "step" and v is not None)
                print(f"step {record['step']}: {', '.join(values)}", file=sys.stderr, flush=True)

            yield on_step, on_record

    return shown()
