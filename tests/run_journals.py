"""Small searches as command lines, and their journals as what is compared."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SCORED", "SEARCH", "journal", "kill_workers", "search", "started"]

SIZES = ["--population", "6", "--elites", "2", "--iterations", "3", "--samples", "4", "--seq-len", "32"]
SEARCH = [*SIZES, "--channel-quantum", "8", "--params", "60%", "--threads", "1"]
SCORED = [
    ("llama", ()),
    pytest.param("mixtral", (), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "phi"), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "kl", "--race", "off"), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "loss=0.5,phi=0.5"), marks=pytest.mark.slow),
]
"""Models, and options that score differently."""


def search(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    """Of one of `save_families`' models."""
    return ["search", str(home / model), "--data", str(home / "text.txt"), "--out", str(out), *SEARCH, *options]


def journal(run: Path) -> list[dict[str, Any]]:
    """But for times."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def started(argv: list[str]) -> "subprocess.Popen[bytes]":
    """A command in a process of its own, whose output nobody reads."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "tracenas", *argv], **quiet)  # type: ignore[call-overload]


def kill_workers(process: "subprocess.Popen[bytes]", run: Path, workers: Callable[[int], set[int]], most: int) -> int:
    """Kill every process that `workers` finds below a search, `most` in all, one by one until the search ends.

    Returns:
        how many there were.
    """
    killed: set[int] = set()
    while process.poll() is None:
        if (run / "journal.jsonl").is_file() and len(killed) < most:
            for worker in workers(process.pid) - killed:
                os.kill(worker, signal.SIGKILL)
                killed.add(worker)
                break
        time.sleep(0.05)
    return len(killed)
