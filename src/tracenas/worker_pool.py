"""Worker processes for evaluations: one pipe per process, results in order, a worker that dies is replaced.

What goes through the pipes is JSON text. The results do not depend on the number of workers, as every task is
evaluated on its own. Tensors of what workers are built from lie in memory that all processes share.
"""

import json
import logging
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Protocol, Self

from tracenas.error_log import log_trace
from tracenas.errors import first_line

__all__ = ["TRIES", "TaskPool", "WorkerPool", "answered", "available_cores"]

TRIES = 3
"""How many fresh workers a task may end, each alone, before it counts as failed."""
_FROM_OUTSIDE = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit codes of workers that were told to end: no task's doing."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class TaskPool(Protocol):
    """Workers, wherever they are, as the driver sees them: a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def map(self, tasks: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """Per task, in order: `{"result": …}`, or `{"error": …}` if it raised or ended its worker again and again.

        What is under way when the iterator is closed is given up.
        """


def answered(evaluate: Callable[[Any], Any], task: Any) -> dict[str, Any]:
    """What a worker says to a task: `{"result": …}`, or `{"error": …, "trace": …}` if it raised."""
    try:
        return {"result": evaluate(task)}
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return {"error": f"{type(error).__name__}: {first_line(error)[:200]}", "trace": trace}


def _serve(connection: Connection, target: str, spec: Any) -> None:
    """A worker's life: build, then answer task by task until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    logging.getLogger("tracenas").setLevel(logging.ERROR)  # and shows the progress
    try:
        evaluate = resolve_name(target)(spec)
        while True:
            task = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(answered(evaluate, task)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


class _Worker:
    def __init__(self, context: Any, target: str, spec: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, target, spec), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None
        self.fresh = True

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class WorkerPool:
    """Evaluates JSON tasks in `workers` processes; a context manager.

    Args:
        target: `module:function` that makes the evaluating function from `spec` in every worker.
        spec: what it is given, by pickle from process to process; of torch's tensors only where they lie.
        workers: processes.
        start: start method; forkserver for the CPU, spawn for CUDA.
    """

    def __init__(self, target: str, spec: Any, workers: int, *, start: str = "forkserver") -> None:
        self._context = multiprocessing.get_context(start)
        self._target, self._spec = target, spec
        self._workers = [_Worker(self._context, self._target, self._spec) for _ in range(workers)]

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def map(self, tasks: Sequence[Any]) -> Iterator[dict[str, Any]]:
        """As `TaskPool`'s."""
        waiting = deque(range(len(tasks)))
        answers: dict[int, dict[str, Any]] = {}
        deaths = [0] * len(tasks)
        try:
            for place in range(len(tasks)):
                while place not in answers:
                    self._give(waiting, tasks)
                    self._collect(waiting, answers, deaths)
                yield answers.pop(place)
        finally:
            for place, worker in enumerate(self._workers):
                if worker.task is not None:
                    self._renew(place)

    def _renew(self, place: int) -> _Worker:
        """A fresh worker in place of one that is dead, or busy with what nobody waits for."""
        old = self._workers[place]
        if old.process.is_alive():
            old.process.kill()
        old.close()
        self._workers[place] = _Worker(self._context, self._target, self._spec)
        return self._workers[place]

    def _give(self, waiting: deque[int], tasks: Sequence[Any]) -> None:
        for place, worker in enumerate(self._workers):
            if worker.task is None and waiting:
                if not worker.process.is_alive():
                    worker = self._renew(place)
                worker.task = waiting.popleft()
                try:
                    worker.connection.send_bytes(json.dumps(tasks[worker.task]).encode())
                except (BrokenPipeError, ConnectionResetError):
                    continue  # found dead by `_collect`

    def _collect(self, waiting: deque[int], answers: dict[int, dict[str, Any]], deaths: list[int]) -> None:
        busy = {w.connection: (place, w) for place, w in enumerate(self._workers) if w.task is not None}
        for ready in wait(list(busy)):
            place, worker = busy[ready]
            task, worker.task = worker.task, None
            assert task is not None
            try:
                answers[task] = json.loads(worker.connection.recv_bytes())
                worker.fresh = False
                if trace := answers[task].pop("trace", None):
                    log_trace(trace)
            except (EOFError, ConnectionResetError):
                worker.process.join()
                deaths[task] += worker.fresh and worker.process.exitcode not in _FROM_OUTSIDE
                self._renew(place)
                if deaths[task] < TRIES:
                    waiting.appendleft(task)
                else:
                    answers[task] = {"error": f"its process died {TRIES} times ({_ending(worker)})"}


def _ending(worker: _Worker) -> str:
    """How a process ended."""
    code = worker.process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
