"""Worker processes for evaluations: one pipe per process, results in order, a worker that dies is replaced.

What goes through the pipes is JSON text. The results do not depend on the number of workers, as every task is
evaluated on its own. Tensors of what workers are built from lie in memory that all processes share.
"""

import json
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, Protocol, Self

from tracenas.error_log import log_trace
from tracenas.errors import UserError, first_line, one_line
from tracenas.task_line import TRIES, TaskLine

__all__ = ["TaskPool", "WorkerPool", "answered", "available_cores", "prepare"]

_BEGUN = b"begun"
"""What a worker says before its answers."""
_FROM_OUTSIDE = frozenset({-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})
"""Exit codes of workers that were told to end: no task's doing."""


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare(target: str) -> None:
    """Have the server begin that worker processes are forked from, with the module of what builds them imported.

    Importing takes seconds: once for all workers, those in place of dead ones among them, and beside other work where
    this is called early. A server that runs already stays as it is.
    """
    forkserver.set_forkserver_preload([target.partition(":")[0]])
    forkserver.ensure_running()


class TaskPool(Protocol):
    """Workers, wherever they are, as the driver sees them: a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def map(self, tasks: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """Per task, in order: `{"result": …}`, or `{"error": …}` if it raised or ended its worker again and again.

        Tasks are made while workers work on those before. What is under way when the iterator is closed is given up.
        """


def answered(evaluate: Callable[[Any], Any], task: Any) -> dict[str, Any]:
    """What a worker says to a task: `{"result": …}`, or `{"error": …, "trace": …}` if it raised."""
    try:
        return {"result": evaluate(task)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {first_line(error)[:200]}", "trace": _trace(error)}


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def _serve(connection: Connection, target: str, spec: Any) -> None:
    """A worker's life: build, say so, then answer task by task until the pipe closes or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    logging.getLogger("tracenas").setLevel(logging.ERROR)  # and shows the progress
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        try:
            evaluate = resolve_name(target)(spec)
        except Exception as error:
            connection.send_bytes(json.dumps({"refused": one_line(error), "trace": _trace(error)}).encode())
            return
        connection.send_bytes(_BEGUN)
        while True:
            task = json.loads(connection.recv_bytes())
            connection.send_bytes(json.dumps(answered(evaluate, task)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _end_with_parent() -> None:
    """In the middle of a task, too, which may take minutes and the memory that whoever goes on needs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class _Worker:
    def __init__(self, context: Any, target: str, spec: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, target, spec), daemon=True)
        self.process.start()
        theirs.close()
        self.task: int | None = None
        self.begun = False
        self.fresh = True

    @property
    def ending(self) -> str:
        """How its process ended."""
        code = self.process.exitcode
        return signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"

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
        places: what each worker is told for itself, such as its device, and whoever comes in its place: `target` is
            given `(spec, place)` then.

    `map` raises UserError if a worker cannot be built, or one after the other ends before it has begun.
    """

    def __init__(
        self, target: str, spec: Any, workers: int, *, start: str = "forkserver", places: Sequence[Any] = ()
    ) -> None:
        if start == "forkserver":
            prepare(target)
        self._context = multiprocessing.get_context(start)
        self._target, self._spec, self._places = target, spec, places
        self._workers = [self._made(place) for place in range(workers)]
        self._vain = 0

    def _made(self, place: int) -> _Worker:
        spec = (self._spec, self._places[place]) if self._places else self._spec
        return _Worker(self._context, self._target, spec)

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.close()

    def map(self, tasks: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """As `TaskPool`'s."""
        line = TaskLine(tasks)
        try:
            yield from line.answered(partial(self._work, line))
        finally:
            for place, worker in enumerate(self._workers):
                if worker.task is not None:
                    self._renew(place)

    def _work(self, line: TaskLine) -> None:
        self._give(line)
        self._collect(line)

    def _renew(self, place: int) -> _Worker:
        """A fresh worker in place of one that is dead, or busy with what nobody waits for."""
        old = self._workers[place]
        if old.process.is_alive():
            old.process.kill()
        old.close()
        self._workers[place] = self._made(place)
        return self._workers[place]

    def _give(self, line: TaskLine) -> None:
        for place, worker in enumerate(self._workers):
            if worker.task is None and line.waits():
                if not worker.process.is_alive():
                    worker = self._renew(place)
                worker.task = line.take()
                try:
                    worker.connection.send_bytes(line.text(worker.task).encode())
                except (BrokenPipeError, ConnectionResetError):
                    continue  # found dead by `_collect`

    def _collect(self, line: TaskLine) -> None:
        """Wait until a worker has begun, answered or died; the next tasks are made meanwhile."""
        busy = {w.connection: (place, w) for place, w in enumerate(self._workers) if w.task is not None}
        while not (readable := wait(list(busy), 0 if (ahead := line.runs_short(len(self._workers))) else None)):
            if ahead:
                line.make()
        for ready in readable:
            place, worker = busy[ready]
            assert worker.task is not None
            try:
                said = worker.connection.recv_bytes()
            except (EOFError, ConnectionResetError):
                self._bury(place, line)
                continue
            if said == _BEGUN:
                worker.begun, self._vain = True, 0
                continue
            answer = json.loads(said)
            if trace := answer.pop("trace", None):
                log_trace(trace)
            if "refused" in answer:
                raise UserError(f"a worker process cannot begin: {answer['refused']}")
            line.answer(worker.task, answer)
            worker.task, worker.fresh = None, False

    def _bury(self, place: int, line: TaskLine) -> None:
        """Put a fresh worker in a dead one's place, and its task back; an end before it has begun is no task's doing.

        Raises:
            UserError: if one after the other does, and none works.
        """
        worker = self._workers[place]
        assert worker.task is not None
        worker.process.join()
        self._renew(place)
        if not worker.begun:
            self._vain += 1
            if self._vain >= TRIES * len(self._workers) and not any(w.begun for w in self._workers):
                raise UserError(f"no worker process can begin: each ends at its start ({worker.ending})")
        blame = worker.begun and worker.fresh and worker.process.exitcode not in _FROM_OUTSIDE
        line.lost(worker.task, worker.ending, blame=blame)
