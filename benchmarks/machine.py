"""What every benchmark says about where it ran, and how it times interleaved contestants."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tracenas.resident import resident_memory

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""What seconds are: those of the wall, or of this process's threads."""


def facts() -> dict[str, Any]:
    """Machine, versions and date."""
    import torch
    import transformers

    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def memory(key: str) -> int:
    """A line of /proc/self/status, bytes: `VmRSS` is resident now, `VmHWM` at the peak."""
    size = resident_memory(key)
    assert size is not None, "no /proc"
    return size


def interleaved(
    contestants: dict[str, Callable[[], Any]],
    rounds: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every contestant per round; they take turns, so that a drifting machine decides nothing."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(warmup + rounds):
        for name, run in contestants.items():
            started = clock()
            run()
            if i >= warmup:
                seconds[name].append(clock() - started)
    return seconds


def ratio(a: list[float], b: list[float]) -> float:
    """Median of a/b, round by round."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def publish(result: dict[str, Any], out: str | None) -> None:
    """Print as JSON and, if asked, write to a file."""
    text = json.dumps(result, indent=2)
    print(text)
    if out is not None:
        Path(out).write_text(text + "\n")
