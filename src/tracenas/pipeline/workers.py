"""Workers of a command: how many there are, with how many threads, and who answers its tasks."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, TypeVar

from tracenas.cluster.joining import require_address
from tracenas.config import StageConfig
from tracenas.errors import UserError
from tracenas.worker_pool import TaskPool, WorkerPool, available_cores

__all__ = ["answering", "answers_of", "gpus_of", "local_workers", "require_cpu", "with_threads", "with_workers"]

C = TypeVar("C", bound=StageConfig)
_log = logging.getLogger("tracenas")


_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Where one of them is, there may be a GPU; torch, which knows, takes seconds to import."""


def gpus_of(device: str) -> tuple[str, ...]:
    """The GPUs that a setting of `device` stands for: all of `auto` and `cuda`, one of `cuda:N`; empty: the CPU."""
    if device == "cpu" or not any(Path(driver).exists() for driver in _DRIVERS):
        return ()
    import torch

    if device in ("auto", "cuda"):
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    return (device,)


def with_workers(config: C, *, on_gpus: bool = False) -> C:
    """The settings with a number of workers, no more than there are cores; a cluster's room is seen once it is joined.

    Args:
        on_gpus: whether the command's workers may have a GPU each, and are no more than these where there are any.

    Raises:
        UserError: for what is no address of a cluster.
    """
    asked: Any = config
    if (address := getattr(asked, "ray", None)) is not None:
        require_address(address)
        return config
    cores, workers = available_cores(), asked.workers
    if on_gpus and workers != 1 and (found := gpus_of(config.device)):
        if workers != "auto" and workers > len(found):
            _log.warning("workers %d: one on each of %s, so %d", workers, ", ".join(found), len(found))
        number = len(found) if workers == "auto" else min(workers, len(found))
        return config.model_copy(update={"workers": number})
    if workers == "auto":
        workers = max(1, cores // (asked.threads or 1))
    elif workers > cores:
        _log.warning("workers %d: this machine has cores for %d, so as many", workers, cores)
        workers = cores
    return config.model_copy(update={"workers": workers})


def with_threads(config: C) -> C:
    """The settings with the threads of each of several workers.

    Where none were given the cores are shared out, and in a cluster, whose nodes may have any number, it is one.
    """
    asked: Any = config
    if asked.threads is None and getattr(asked, "ray", None) is not None:
        return config.model_copy(update={"threads": 1})
    if asked.workers == 1 or asked.threads is not None:
        return config
    return config.model_copy(update={"threads": available_cores() // asked.workers})


def local_workers(config: StageConfig) -> int:
    """How many processes of this machine work, once `with_workers` has made a number of them; beside a cluster one."""
    asked: Any = config
    return 1 if getattr(asked, "ray", None) is not None else int(asked.workers)


def require_cpu(config: StageConfig) -> None:
    """Refuse workers on a GPU.

    Raises:
        UserError: as said.
    """
    from tracenas.models.checkpoints.loading import pick_device  # torch takes seconds to import

    asked: Any = config
    if asked.workers != 1 and (device := pick_device(config.device)).type != "cpu":
        raise UserError(f"workers {asked.workers}: several processes work on a CPU, not on {device}: --workers 1")


@contextmanager
def answering(
    target: str, spec: Any, workers: int, threads: int
) -> Iterator[Callable[[Sequence[Any]], Iterator[dict[str, Any]]]]:
    """Who answers tasks, in order: this process, or others that share the tensors of `spec`.

    Args:
        target: `module:function` that makes the answering function from `spec`.
        threads: of each of several processes.

    Raises:
        UserError: if shared memory is too small.
    """
    if workers == 1:
        answer = resolve_name(target)(spec)
        yield lambda tasks: (answer(task) for task in tasks)
        return
    from tracenas.shared_tensors import require_shared_memory  # torch takes seconds to import

    require_shared_memory(spec, workers)
    with WorkerPool(f"{__name__}:build", (target, spec, threads), workers) as pool:
        yield answers_of(pool)


def build(built: tuple[str, Any, int]) -> Callable[[Any], Any]:
    """What a process does with a task."""
    from tracenas.threads import set_threads  # torch takes seconds to import

    target, spec, threads = built
    set_threads(threads)
    answer: Callable[[Any], Any] = resolve_name(target)(spec)
    return answer


def answers_of(pool: TaskPool) -> Callable[[Sequence[Any]], Iterator[dict[str, Any]]]:
    """What a pool's workers answer, in order; a task whose failure is no result ends the command."""
    return lambda tasks: (_result(answer) for answer in pool.map(tasks))


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    """Of a task whose failure is no result.

    Raises:
        RuntimeError: if it failed.
    """
    if "error" in answer:
        raise RuntimeError(f"a worker failed: {answer['error']}")
    result: dict[str, Any] = answer["result"]
    return result
