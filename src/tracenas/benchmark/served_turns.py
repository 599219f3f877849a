"""Latencies of architectures in a program that reads files: each is written, measured in turns, and removed again."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tracenas.benchmark.latency import take_turns
from tracenas.benchmark.latency_table import Point
from tracenas.benchmark.served_model import Run, ServedModel
from tracenas.benchmark.width_latency import Latencies, TurnTimes
from tracenas.space.architecture import Architecture

__all__ = ["ServedTurns", "beside_base"]

Write = Callable[[Architecture, Path], None]
"""Makes what a program reads of an architecture, whatever its weights are."""
Serve = Callable[[Path], AbstractContextManager[ServedModel]]
"""Has a program serve that."""


class ServedTurns:
    """Measures architectures in turns with the base.

    Args:
        base: as it is served, as long as this lasts.
        size: bytes of what the program reads of the base.
        write, serve: other ones.
        points: how it is served.
        turns: trials of every architecture.
        new_tokens: tokens that are decoded per trial.
        warmup: further trials, which come first and do not count.
    """

    def __init__(
        self,
        base: ServedModel,
        size: int,
        write: Write,
        serve: Serve,
        points: Sequence[Point],
        *,
        turns: int,
        new_tokens: int,
        warmup: int = 0,
    ) -> None:
        self.base, self.size, self._write, self._serve = base, size, write, serve
        self._turns, self._warmup = turns, warmup
        self._runs: list[Run] = [
            {
                "batch": point.batch,
                "prompt": point.prompt,
                "before": max(1, point.context - new_tokens // 2),
                "new_tokens": new_tokens,
            }
            for point in points
        ]
        self._steps = new_tokens - 1

    def __call__(self, archs: Sequence[Architecture], advance: Callable[[int], None]) -> TurnTimes:
        """Every architecture and the base, turn by turn.

        Args:
            advance: told after every trial.
        """
        with tempfile.TemporaryDirectory(prefix="tracenas-measure-") as scratch, ExitStack() as opened:
            models = [self.base]
            for number, arch in enumerate(archs):
                path = Path(scratch) / str(number)
                self._write(arch, path)
                models.append(opened.enter_context(self._serve(path)))
            trials = [partial(self._trial, model) for model in models]
            base, *others = take_turns(trials, self._turns, self._warmup, advance)
        return TurnTimes(tuple(base), tuple(map(tuple, others)))

    def _trial(self, model: ServedModel) -> Latencies:
        return tuple(
            {"prefill_ms": 1000 * run["prefill"], "decode_ms": 1000 * run["decode"] / self._steps}
            for run in model.ask(self._runs)["runs"]
        )


@contextmanager
def beside_base(
    arch: Architecture, write: Write, serve: Serve, points: Sequence[Point], **settings: int
) -> Iterator[ServedTurns]:
    """Turns with this architecture, which is served as long as the context lasts.

    Args:
        settings: of `ServedTurns`.
    """
    with tempfile.TemporaryDirectory(prefix="tracenas-measure-") as scratch:
        path = Path(scratch) / "base"
        write(arch, path)
        with serve(path) as base:
            yield ServedTurns(base, path.stat().st_size, write, serve, points, **settings)
