"""Progress on stderr: live lines on a terminal or in a notebook, elsewhere plain lines of the logger `tracenas`.

Nothing is shown where the logger's level is above `warning`.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from tracenas.formats import decimal, duration, percent, plural, short_count
from tracenas.reporting.notebook import CellOutput

__all__ = ["START", "Phase", "Rate", "SearchProgress", "phase"]

T = TypeVar("T")

START = "start torch and transformers"
"""The phase of importing them, which takes seconds."""

WINDOW = 60  # evaluations that the speed is averaged over
LONG_SECONDS = 60.0  # of a longer generation there are several lines
QUIET_SECONDS = 5.0  # a phase's plain lines are at least this far apart
AT_ONCE_SECONDS = 0.05  # reports this close to each other say nothing of the speed
BRIEF_SECONDS = 1.0  # what a shorter phase took is told at level `debug` alone

_log = logging.getLogger("tracenas")
_STDERR = Console(stderr=True)  # one, so that a phase inside another one is shown below it
_CELL = CellOutput()


class Rate:
    """Speed of work over the last `window` reports, and what remains at that speed.

    Reports that come at once, as of candidates that were measured together, are one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = WINDOW) -> None:
        self._clock = clock
        self._points: deque[tuple[float, int]] = deque(maxlen=window + 1)

    def add(self, done: int) -> None:
        """So much is done by now."""
        now = self._clock()
        if self._points and now - self._points[-1][0] < AT_ONCE_SECONDS:
            now, _ = self._points.pop()
        self._points.append((now, done))

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


def _live(console: Console) -> bool:
    """Whether it can show live displays, and any are to be shown."""
    shows = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
    return shows and _log.isEnabledFor(logging.WARNING)


class _Bars(Progress):
    """Bars, each with its status on a line of its own, which a narrow terminal cuts off.

    In a notebook they are part of the cell's output; rich's own display there leaves an empty one behind each phase.
    """

    def start(self) -> None:
        if self.console.is_jupyter:
            _CELL.begin(self.get_renderable)
        else:
            super().start()

    def stop(self) -> None:
        if self.console.is_jupyter:
            _CELL.end(self.get_renderable, keep=not self.live.transient)
        else:
            super().stop()

    def show(self, task: TaskID, **facts: Any) -> None:
        """Show new facts of a bar."""
        self.update(task, **facts)
        if self.console.is_jupyter:
            _CELL.draw()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if status := task.fields["status"]:
                yield Text(f"  {status}", style="dim", no_wrap=True, overflow="ellipsis")


class SearchProgress:
    """Progress of a search: generation, evaluations, best score, budget, speed and time left.

    A context manager. On a terminal one live line; elsewhere a plain line per finished generation, and every minute.
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
        console: Console = _STDERR,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generations = generations
        self._budget = budget
        self._base_params = base_params
        self._label = label
        self._live = _live(console)
        self._rate, self._clock = Rate(clock), clock
        self._told = clock()
        self._state: tuple[int, str] | None = None
        self._task: TaskID | None = None
        self._progress = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}", markup=False),
            console=console,
            redirect_stdout=False,
        )

    def __enter__(self) -> "SearchProgress":
        if self._live:
            self._progress.start()
            self._task = self._progress.add_task("Search", total=None, status="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the live line, or tell the last generation's."""
        if self._live:
            self._progress.stop()
        else:
            self._tell()

    def _tell(self) -> None:
        if self._state is not None:
            _log.info("%s", self._state[1])
        self._told, self._state = self._clock(), None

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
        name = f"Generation {min(generation + 1, self._generations)}/{self._generations}"
        status = self._status(total, best, params, duplicates)
        if self._task is not None:
            self._progress.show(self._task, description=name, completed=evaluated, total=total, status=status)
            return
        if self._state is not None and self._state[0] != generation:
            self._tell()
        self._state = (generation, f"{name}: {evaluated}/{total} evaluations, {status}")
        if self._clock() - self._told >= LONG_SECONDS:
            self._tell()

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


class Phase:
    """What a phase of the work has done so far; the work below is told `report`, or is run `over` its steps.

    Args:
        done, total: finished steps and all of them; None: unknown.
    """

    def __init__(self, done: int, total: int | None) -> None:
        self.done, self.total, self.status = done, total, ""
        self.show: Callable[[bool], None] = lambda line: None

    def report(self, done: int, total: int) -> None:
        """So many steps of so many are done."""
        self.done, self.total = done, total
        self.show(False)

    def advance(self, steps: int = 1) -> None:
        """More steps are done."""
        self.done += steps
        self.show(False)

    def tell(self, status: str, *, line: bool = False) -> None:
        """What stands beside the number of steps; `line`: it is worth a line of its own where there is no bar."""
        self.status = status
        self.show(line)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items, each a step that is done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    @property
    def count(self) -> str:
        """`3/10`, `3`, or nothing."""
        of = "" if self.total is None else f"/{self.total:,}"
        return f"{self.done:,}{of}" if self.done or self.total else ""


def phase(
    name: str,
    total: int | None = None,
    *,
    done: int = 0,
    bar: bool = True,
    console: Console = _STDERR,
    clock: Callable[[], float] = time.monotonic,
) -> AbstractContextManager[Phase]:
    """Show a phase of the work while the block runs: its name, steps, status, elapsed time and ETA.

    On a terminal or in a notebook a bar; elsewhere a line every tenth of the way, at most one in 5 seconds, and one at
    the end. A phase of less than a second leaves no line behind at level `info`.

    Args:
        total: its steps; None: not known, or none.
        done: steps that were done before.
        bar: False where what runs shows bars of its own: then there are lines on a terminal, too.
    """
    shown = Phase(done, total)
    return _Bar(name, shown, console) if bar and _live(console) else _Lines(name, shown, clock)


class _Bar:
    """A phase as a live bar."""

    def __init__(self, name: str, phase: Phase, console: Console) -> None:
        self._phase = phase
        self._progress = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            _Left(),
            console=console,
            redirect_stdout=False,
        )
        self._task = self._progress.add_task(
            name, total=phase.total, completed=phase.done, count=phase.count, status=""
        )

    def __enter__(self) -> Phase:
        self._progress.start()
        self._phase.show = self._show
        return self._phase

    def _show(self, line: bool) -> None:
        p = self._phase
        self._progress.show(self._task, completed=p.done, total=p.total, count=p.count, status=p.status)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        brief = (self._progress.tasks[0].elapsed or 0) < BRIEF_SECONDS
        self._progress.live.transient = brief and not _log.isEnabledFor(logging.DEBUG)
        if self._phase.total is None and kind is None:
            self._progress.update(self._task, total=max(1, self._phase.done), completed=max(1, self._phase.done))
        self._progress.stop()


class _Lines:
    """A phase as plain lines."""

    def __init__(self, name: str, phase: Phase, clock: Callable[[], float]) -> None:
        self._name, self._phase, self._clock = name, phase, clock
        self._before = self._told = phase.done
        self._began = self._last = clock()
        self._timer = threading.Timer(QUIET_SECONDS, self._begun)
        self._timer.daemon = True

    def __enter__(self) -> Phase:
        self._phase.show = self._show
        self._timer.start()
        return self._phase

    def _begun(self) -> None:
        _log.info("%s …", self._name)

    def _show(self, line: bool) -> None:
        p, now = self._phase, self._clock()
        enough = p.done - self._told >= (p.total or 0) / 10 and p.done not in (self._told, p.total)
        if line or (enough and now - self._last >= QUIET_SECONDS):
            self._timer.cancel()
            steps = p.done - self._before
            left = (now - self._began) * max(0, p.total - p.done) / steps if p.total and steps else None
            _log.info("%s", self._line(_eta(left)))
            self._told, self._last = p.done, now

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        seconds = self._clock() - self._began
        if kind is None:
            within = f" in {duration(seconds)}" if self._phase.count else f" {duration(seconds)}"
            _log.log(logging.DEBUG if seconds < BRIEF_SECONDS else logging.INFO, "%s", self._line(within))

    def _line(self, behind: str) -> str:
        status = f", {self._phase.status}" if self._phase.status else ""
        count = f" {self._phase.count}" if self._phase.count else ""
        return f"{self._name}:{count}{status}{behind}"
