"""What the processes of the pool's test run; imports nothing heavy."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def build(spec: Any) -> Callable[[Any], Any]:
    """For the pool: squares, fails or dies as the task says."""

    def evaluate(task: Any) -> Any:
        if task == "fail":
            raise ValueError("as asked")
        if task == "die" or (task == "die once" and not Path(spec).exists()):
            Path(spec).touch()
            os._exit(1)
        return task if task == "die once" else task * task

    return evaluate


def build_sum(spec: Any) -> Callable[[Any], Any]:
    """Of numbers that lie in shared memory."""
    return lambda task: task + sum(float(tensor.sum()) for tensor in spec)


def build_at_last(spec: Any) -> Callable[[Any], Any]:
    """Its process is killed at the start, as where memory is short, so many times as the name of the file says."""
    path = Path(spec)
    with path.open("a") as file:
        file.write(".")
    if len(path.read_text()) <= int(path.name):
        os.kill(os.getpid(), signal.SIGKILL)
    return build(spec)


def build_sleeper(spec: Any) -> Callable[[Any], Any]:
    """It says who it is, and sleeps."""

    def evaluate(task: float) -> None:
        Path(spec).write_text(str(os.getpid()))
        time.sleep(task)

    return evaluate
