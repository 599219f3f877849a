"""A pool whose workers are Ray actors: the tasks and answers of `worker_pool`, on as many machines as there are."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from types import TracebackType
from typing import Any

from tracenas.cluster.joining import Cluster
from tracenas.cluster.versions import difference, versions
from tracenas.error_log import log_trace
from tracenas.errors import UserError, one_line
from tracenas.task_line import TRIES, TaskLine
from tracenas.worker_pool import answered

__all__ = ["ActorPool", "RemoteWorker"]

_log = logging.getLogger("tracenas")
_PATIENCE = 15.0
"""Seconds without a worker after which it is said what is waited for."""
_NEVER_RAN = "The actor never ran"


class RemoteWorker:
    """What runs in an actor."""

    _evaluate: Callable[[Any], Any]

    def begin(self, wanted: dict[str, str], target: str, spec: list[Any]) -> dict[str, Any]:
        """Build what answers tasks.

        Args:
            spec: reference to it, which is read once the versions are known to be the same.

        Returns:
            the process and its node; `refused` is why this node is none to work on.
        """
        import ray  # in the actor's process

        here: dict[str, Any] = {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid()}
        refused = difference(wanted, versions())
        if refused is None:
            try:
                self._evaluate = resolve_name(target)(ray.get(spec[0]))
            except Exception as error:
                refused = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"
        return {**here, "host": ray.util.get_node_ip_address(), "refused": refused}

    def answer(self, task: str) -> str:
        """What comes of a task; both are JSON."""
        return json.dumps(answered(self._evaluate, json.loads(task)))


@dataclass
class _Place:
    """One of the pool's actors.

    Args:
        actor: None while nothing is wanted of it, and after its death.
        pending: what it is doing, as Ray knows it.
        task: that it has, where it has begun.
        begun: what it said of itself.
        fresh: whether it has answered nothing yet.
    """

    actor: Any = None
    pending: Any = None
    task: int | None = None
    begun: dict[str, Any] | None = None
    fresh: bool = True


class ActorPool:
    """Evaluates JSON tasks in `workers` actors of a cluster; a `TaskPool`.

    An actor that dies is replaced, wherever there is room, and its task given to another. Actors whose node has not
    come yet are waited for by nobody.

    Args:
        target: `module:function` that makes the evaluating function from `spec` in every actor.
        spec: goes to every node once, by Ray's object store; arrays in it lie in memory that a node's actors share.
        cores: of each actor.
        memory: bytes that a node must have left for one.
        gpus: of each, which sees no others.

    Raises:
        UserError: if a node has another version of what results depend on, or does not have what it needs.
    """

    def __init__(
        self, cluster: Cluster, target: str, spec: Any, workers: int, *, cores: int, memory: int, gpus: int = 0
    ) -> None:
        self._cluster, self._ray, self._target = cluster, cluster.ray, target
        self._spec = self._ray.put(spec)
        self._class = self._ray.remote(num_cpus=cores, num_gpus=gpus, memory=memory, max_restarts=0)(RemoteWorker)
        self._places = [_Place() for _ in range(workers)]
        self._vain = 0
        for place in self._places:
            self._start(place)
        while not any(place.begun for place in self._places):
            self._collect(TaskLine(()))

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for place in self._places:
            self._end(place)

    @property
    def processes(self) -> list[int]:
        """Of the actors that have begun."""
        return [place.begun["pid"] for place in self._places if place.begun is not None]

    def map(self, tasks: Iterable[Any]) -> Iterator[dict[str, Any]]:
        """As `TaskPool`'s."""
        line = TaskLine(tasks)
        try:
            yield from line.answered(partial(self._work, line))
        finally:
            for place in self._places:
                if place.task is not None:
                    self._end(place)

    def _start(self, place: _Place) -> None:
        place.actor, place.begun, place.fresh = self._class.remote(), None, True
        place.pending = place.actor.begin.remote(versions(), self._target, [self._spec])

    def _end(self, place: _Place) -> None:
        if place.actor is not None:
            self._ray.kill(place.actor)
        place.actor = place.pending = place.task = place.begun = None

    def _work(self, line: TaskLine) -> None:
        self._give(line)
        self._collect(line)

    def _give(self, line: TaskLine) -> None:
        for place in self._places:
            if place.actor is None and line.waits():
                self._start(place)
            if place.begun is not None and place.task is None and line.waits():
                place.task = line.take()
                place.pending = place.actor.answer.remote(line.text(place.task))

    def _collect(self, line: TaskLine) -> None:
        """Wait until an actor has begun, answered or died; the next tasks are made meanwhile."""
        pending = {place.pending: place for place in self._places if place.pending is not None}
        while not (ready := self._ready(pending, 0 if (ahead := line.runs_short(len(self._places))) else _PATIENCE)):
            if not ahead:
                break
            line.make()
        if not ready and not any(place.begun for place in self._places):
            _log.info("ray: no worker has begun yet: the cluster has %s", self._free())
        for done in ready:
            place = pending[done]
            task, place.task, place.pending = place.task, None, None
            try:
                said = self._ray.get(done)
            except self._ray.exceptions.RayActorError as error:
                self._bury(place, task, error, line)
                continue
            except self._ray.exceptions.RayError as error:  # as where a node does not have the package
                raise UserError(f"ray {self._cluster.address}: no worker can begin: {_last_line(error)}") from error
            if task is None:
                self._welcome(place, said)
                continue
            answer = json.loads(said)
            place.fresh = False
            if trace := answer.pop("trace", None):
                log_trace(trace)
            line.answer(task, answer)

    def _ready(self, pending: Mapping[Any, _Place], seconds: float) -> list[Any]:
        """What is done of that, at once or within so many seconds."""
        ready: list[Any] = self._ray.wait(list(pending), timeout=seconds)[0]
        return ready

    def _welcome(self, place: _Place, said: dict[str, Any]) -> None:
        """An actor has begun, or says why it does not.

        Raises:
            UserError: with that.
        """
        if said["refused"] is not None:
            raise UserError(f"ray {self._cluster.address}: node {said['host']}: {said['refused']}")
        place.begun, self._vain = said, 0

    def _bury(self, place: _Place, task: int | None, error: Exception, line: TaskLine) -> None:
        """Put a fresh actor in a dead one's place, and its task back.

        Raises:
            UserError: if one after the other ends before it has begun, and none works.
        """
        node = place.begun["node"] if place.begun is not None else None
        blame = place.fresh and node is not None and self._cluster.has_node(node)
        self._start(place)
        if task is not None:
            line.lost(task, _ending(error), blame=blame)
            return
        self._vain += 1
        if self._vain >= TRIES * len(self._places) and not any(place.begun for place in self._places):
            raise UserError(f"ray {self._cluster.address}: no worker can begin: {_last_line(error)}")

    def _free(self) -> str:
        """What the cluster has left."""
        free, total = self._ray.available_resources(), self._ray.cluster_resources()
        return f"{free.get('CPU', 0):g} of {total.get('CPU', 0):g} cores free"


def _last_line(error: Exception) -> str:
    """Of a message that begins with a traceback, or with facts of an actor and ends with whether it ever ran."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[-1].startswith(_NEVER_RAN):
        lines.pop()  # the line before says why
    return lines[-1][:400] if lines else type(error).__name__


def _ending(error: Exception) -> str:
    """How a process ended, of all that Ray says about it."""
    text = one_line(error, 2000)
    found = re.search(r"Worker exit detail: ([^.]*\.[^.]*)\.", text)
    return found[1] if found else text[:120]
