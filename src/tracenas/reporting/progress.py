"""Live progress on a terminal, plain lines elsewhere; always on stderr."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from tracenas.formats import decimal, duration, percent, plural, short_count

__all__ = ["Advance", "Rate", "SearchProgress", "stage_progress"]


class Advance(Protocol):
    """Adds finished steps to a stage's progress, one unless told otherwise."""

    def __call__(self, steps: int = 1) -> None: ...


WINDOW = 60  # evaluations that the speed is averaged over
QUIET_SECONDS = 5.0  # a stage's plain lines are at least this far apart


class Rate:
    """Speed of work over the last `window` reports, and what remains at that speed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = WINDOW) -> None:
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def add(self, done: int) -> None:
        """So much is done by now."""
        self._points.append((self._clock(), done))

    @property
    def per_second(self) -> float | None:
        """Units per second; None before the second report."""
        if len(self._points) < 2:
            return None
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start and after > before else None

    def remaining(self, total: int) -> float | None:
        """Seconds until `total` is done; None while the speed is unknown."""
        speed = self.per_second
        return None if speed is None or not self._points else max(0, total - self._points[-1][1]) / speed


def _console(console: Console | None) -> tuple[Console, bool]:
    """The console (stderr if none is given) and whether it can show live displays."""
    console = console or Console(stderr=True)
    return console, console.is_terminal and not console.is_dumb_terminal


def _print(console: Console, message: str) -> None:
    """One plain line, whatever the console's width and encoding."""
    encoding = console.encoding or "utf-8"
    console.file.write(message.encode(encoding, "replace").decode(encoding) + "\n")
    console.file.flush()


class SearchProgress:
    """Progress of a search: generation, evaluations, best score, budget, speed and time left.

    A context manager. On a terminal one live line; elsewhere a plain line per finished generation.
    `budget` is the limit in parameters, `base_params` the base model's, `label` the score's name. The speed
    is measured between calls of `update`: what a resumed search found in its journal does not count.
    """

    def __init__(
        self,
        generations: int,
        *,
        budget: int | None = None,
        base_params: int | None = None,
        label: str = "Φ",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._budget = budget
        self._base_params = base_params
        self._label = label
        self._console, self._live = _console(console)
        self._clock = clock
        self._started = clock()
        self._rate = Rate(clock)
        self._state: tuple[int, str] | None = None
        self._evaluated = 0
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}", markup=False),
            TextColumn("{task.fields[status]}", markup=False),
            console=self._console,
            redirect_stdout=False,
        )

    def __enter__(self) -> "SearchProgress":
        self._started = self._clock()
        if self._live:
            self._progress.start()
            self._task = self._progress.add_task("Search", total=None, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """End the live line, or print the last generation's."""
        if self._live:
            self._progress.stop()
        elif self._state is not None:
            _print(self._console, self._state[1])
            self._state = None

    def update(
        self,
        generation: int,
        evaluated: int,
        total: int,
        best: float | None,
        params: int | None,
        duplicates: int,
    ) -> None:
        """Report the state after an evaluation (or several): `generation` counts from 0, `evaluated` in all.

        `best` and `params` are those of the best candidate so far, None while there is none.
        """
        self._rate.add(evaluated)
        self._evaluated = evaluated
        name = f"Generation {min(generation + 1, self._generations)}/{self._generations}"
        status = self._status(total, best, params, duplicates)
        if self._task is not None:
            self._progress.update(self._task, description=name, completed=evaluated, total=total, status=status)
            return
        if self._state is not None and self._state[0] != generation:
            _print(self._console, self._state[1])
        self._state = (generation, f"{name}: {evaluated}/{total} evaluations, {status}")

    def finish(self, message: str | None = None) -> None:
        """Print the last line: `message`, or the number of evaluations and the time they took."""
        self._stop()
        elapsed = duration(self._clock() - self._started)
        _print(self._console, message or f"Search done: {plural(self._evaluated, 'evaluation')} in {elapsed}")

    def _status(self, total: int, best: float | None, params: int | None, duplicates: int) -> str:
        parts = [f"best {self._label} {decimal(best)}" if best is not None else "no score yet"]
        if params is not None:
            share = f" ({percent(params / self._base_params)})" if self._base_params else ""
            limit = f" of {short_count(self._budget)}" if self._budget else ""
            parts.append(f"{short_count(params)}{limit}{share}")
        if duplicates:
            parts.append(plural(duplicates, "duplicate"))
        speed = self._rate.per_second
        if speed is not None:
            parts.append(f"{speed:.2f}/s" if speed >= 0.1 else f"{duration(1 / speed)} each")
        return ", ".join(parts) + _eta(self._rate.remaining(total))


class _Left(ProgressColumn):
    """Elapsed and remaining time."""

    def render(self, task: Task) -> Text:
        return Text(duration(round(task.elapsed or 0)) + _eta(task.time_remaining), style="dim")


def _eta(seconds: float | None) -> str:
    return f", ETA {duration(math.ceil(seconds))}" if seconds else ""


@contextmanager
def stage_progress(
    title: str,
    total: int | None = None,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Advance]:
    """Progress of a stage of `total` steps (None: unknown); yields a function that adds finished steps.

    On a terminal a bar; elsewhere a line every tenth of the way, at most one in 5 seconds, and one
    at the end.
    """
    console, live = _console(console)
    of = "" if total is None else f"/{total}"
    if not live:
        yield from _plain_stage(title, total, of, console, clock)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.completed}{task.fields[of]}", markup=False),
    )
    with Progress(*columns, _Left(), console=console, redirect_stdout=False) as progress:
        task = progress.add_task(title, total=total, of=of)

        def advance(steps: int = 1) -> None:
            progress.advance(task, steps)

        yield advance


def _plain_stage(
    title: str, total: int | None, of: str, console: Console, clock: Callable[[], float]
) -> Iterator[Advance]:
    started = printed = clock()
    done = reported = 0

    def advance(steps: int = 1) -> None:
        nonlocal done, reported, printed
        done += steps
        enough = done - reported >= (total or 0) / 10 and done != total
        if enough and clock() - printed >= QUIET_SECONDS:
            rate = done / max(clock() - started, 1e-9)
            _print(console, f"{title}: {done}{of}{_eta(total and max(0, total - done) / rate)}")
            reported, printed = done, clock()

    yield advance
    _print(console, f"{title}: {done}{of} in {duration(clock() - started)}")
