"""Pools of processes: who is to blame for a worker that ends, and what becomes of the workers of a driver that does."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tracenas.errors import UserError
from tracenas.pipeline.workers import answering
from tracenas.task_line import TRIES
from tracenas.worker_pool import WorkerPool

_DRIVER = """
from tracenas.worker_pool import WorkerPool
if __name__ == "__main__":
    with WorkerPool("pool_worker:build_sleeper", {mark!r}, 1, start="spawn") as pool:
        list(pool.map([600.0]))
"""


def test_a_worker_that_ends_at_its_start_is_no_tasks_doing(tmp_path: Path) -> None:
    often = 2 * TRIES - 1  # some task has waited for three of them
    with WorkerPool("pool_worker:build_at_last", str(tmp_path / str(often)), 2, start="spawn") as pool:
        assert list(pool.map([3, 4])) == [{"result": 9}, {"result": 16}]


def test_workers_that_all_end_at_their_start_are_told(tmp_path: Path) -> None:
    with (
        WorkerPool("pool_worker:build_at_last", str(tmp_path / "1000"), 1, start="spawn") as pool,
        pytest.raises(UserError, match=r"no worker process can begin: each ends at its start \(SIGKILL\)"),
    ):
        list(pool.map([3]))


def test_a_worker_that_cannot_be_built_is_told_in_a_line() -> None:
    with (
        WorkerPool("not_here:build", None, 1, start="spawn") as pool,
        pytest.raises(UserError, match="a worker process cannot begin: No module named 'not_here'"),
    ):
        list(pool.map([3]))


def test_the_next_task_is_made_while_workers_work(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def tasks() -> Iterator[float]:
        yield 0.0
        deadline = time.monotonic() + 60
        while not mark.is_file():
            assert time.monotonic() < deadline, "no worker has begun the first task"
            time.sleep(0.05)
        yield 0.0

    with WorkerPool("pool_worker:build_sleeper", str(mark), 1, start="spawn") as pool:
        assert list(pool.map(tasks())) == [{"result": None}, {"result": None}]


def test_tasks_are_not_made_far_ahead() -> None:
    """Of one worker: with two, one may answer many while the other begins."""
    made = list[int]()

    def tasks() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    with (
        WorkerPool("pool_worker:build", None, 1, start="spawn") as pool,
        closing(cast(Any, pool.map(tasks()))) as answers,
    ):
        assert next(answers) == {"result": 0}
        assert len(made) <= 3  # what is answered, what is worked on, what waits


def test_a_killed_driver_takes_its_workers_with_it_in_the_middle_of_a_task(tmp_path: Path) -> None:
    script, mark = tmp_path / "driver.py", tmp_path / "mark"
    script.write_text(_DRIVER.format(mark=str(mark)))
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    driver = subprocess.Popen([sys.executable, str(script)], env=here)
    while not (mark.is_file() and mark.read_text()):
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    worker, deadline = int(mark.read_text()), time.monotonic() + 30
    while _runs(worker):
        assert time.monotonic() < deadline, "the worker outlives its driver"
        time.sleep(0.05)


def test_workers_share_as_many_tensors_as_a_model_has() -> None:
    """Those of 30 blocks and of their refits are more than the open files that a process can be started with."""
    spec = [torch.full((2,), float(i)) for i in range(600)]
    with answering("pool_worker:build_sum", spec, 2, 1) as answers:
        assert list(answers([0, 1])) == [2 * sum(range(600)) + task for task in (0, 1)]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
