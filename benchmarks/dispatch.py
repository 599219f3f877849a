"""What a candidate costs beside its evaluation: given to a worker, answered, read and journalled.

    python benchmarks/dispatch.py [--candidates 1000] [--layers 30] [--sleep 0.05] [--out FILE]

Tasks are those of a search that races on 8 sequences: an architecture and a bar. Workers, two processes or two actors
of a Ray cluster of this machine, do nothing, or sleep: overhead is wall time × workers / candidates, less the sleep.
Seconds begin once all workers have answered a task. Of a search there is also the line of the journal, which is on
disk before the next one is written.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from machine import facts, publish
from sleeping import TARGET, scored, task_of

from tracenas.cluster.actors import ActorPool
from tracenas.cluster.joining import joined
from tracenas.journal import Journal
from tracenas.space.architecture import Architecture
from tracenas.strategies.result import journal_record
from tracenas.worker_pool import TaskPool, WorkerPool

_WORKERS = 2


@contextmanager
def processes() -> Iterator[TaskPool]:
    """Of this machine."""
    with WorkerPool(TARGET, None, _WORKERS) as pool:
        yield pool


@contextmanager
def actors() -> Iterator[TaskPool]:
    """Of a cluster of this machine."""
    with joined("auto") as cluster, ActorPool(cluster, TARGET, None, _WORKERS, cores=1, memory=1 << 20) as pool:
        yield pool


def architectures(count: int, layers: int) -> list[Architecture]:
    """Any, of the shape of SmolLM2's."""
    rng = np.random.default_rng(0)
    widths = [[{"heads": 9, "channels": int(32 * rng.integers(1, 48))} for _ in range(layers)] for _ in range(count)]
    return [Architecture.from_json({"layers": layers}, where=f"architecture {i}") for i, layers in enumerate(widths)]


def milliseconds(pool: TaskPool, candidates: list[Architecture], sleep: float, journal: Journal | None) -> float:
    """Of a candidate, beside its sleep."""
    tasks = [task_of(candidate, sleep, -3.0) for candidate in candidates]
    started = time.perf_counter()
    for candidate, score in zip(candidates, scored(pool, tasks), strict=True):
        if journal is not None:
            record = journal_record(candidate, score, generation=0, params=1, status="ok", facts={"bos": False})
            journal.append(record)
    return 1000 * ((time.perf_counter() - started) * _WORKERS / len(candidates) - sleep)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--sleep", type=float, default=0.05)
    parser.add_argument("--out")
    args = parser.parse_args()
    candidates = architectures(args.candidates, args.layers)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, opened in {"processes": processes, "actors": actors}.items():
            with opened() as pool:
                milliseconds(pool, candidates[: 10 * _WORKERS], 0.2, None)  # until both have begun
                result[name] = {
                    "nothing": round(milliseconds(pool, candidates, 0.0, None), 2),
                    "a sleep": round(milliseconds(pool, candidates, args.sleep, None), 2),
                    "a sleep, and the journal": round(
                        milliseconds(pool, candidates, args.sleep, Journal(Path(directory) / name)), 2
                    ),
                }
    settings = {key: getattr(args, key) for key in ("candidates", "layers", "sleep")}
    publish({"benchmark": "dispatch", "machine": facts(), **settings, "ms per candidate": result}, args.out)


if __name__ == "__main__":
    main()
