"""Latencies of architectures in a program that reads files: each is written, measured in turns, and removed again."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tracenas.benchmark.latency import take_turns
from tracenas.benchmark.latency_table import Point
from tracenas.benchmark.served import Served
from tracenas.benchmark.width_latency import Latencies, TurnTimes
from tracenas.space.architecture import Architecture

__all__ = ["FileTurns"]


class FileTurns:
    """Measures architectures in turns with the base; one of them is in memory at a time.

    Args:
        base: the base's architecture.
        write: makes the file of an architecture, whatever its weights are.
        served: runs it.
        request: what is asked of every model, beside it and its runs.
        points: how it is served.
        turns: trials of every architecture.
        new_tokens: tokens that are decoded per trial.
    """

    def __init__(
        self,
        base: Architecture,
        write: Callable[[Architecture, Path], None],
        served: Served,
        request: dict[str, Any],
        points: Sequence[Point],
        *,
        turns: int,
        new_tokens: int,
    ) -> None:
        self._base, self._write, self._served, self._turns = base, write, served, turns
        runs = [
            {
                "batch": point.batch,
                "prompt": point.prompt,
                "before": max(1, point.context - new_tokens // 2),
                "new_tokens": new_tokens,
            }
            for point in points
        ]
        self._request, self._steps = {**request, "runs": runs}, new_tokens - 1

    def __call__(self, archs: Sequence[Architecture], advance: Callable[[int], None]) -> TurnTimes:
        """Every architecture and the base, turn by turn.

        Args:
            advance: told after every trial.
        """
        with tempfile.TemporaryDirectory(prefix="tracenas-measure-") as scratch:
            files = []
            for number, arch in enumerate((self._base, *archs)):
                files.append(Path(scratch) / f"{number}.gguf")
                self._write(arch, files[-1])
            trials = [partial(self._trial, file) for file in files]
            base, *others = take_turns(trials, self._turns, 0, advance)
        return TurnTimes(tuple(base), tuple(map(tuple, others)))

    def _trial(self, file: Path) -> Latencies:
        answer = self._served.ask({"model": str(file), **self._request})
        return tuple(
            {"prefill_ms": 1000 * run["prefill"], "decode_ms": 1000 * run["decode"] / self._steps}
            for run in answer["runs"]
        )
