"""Bars in a notebook: one output per cell, drawn again in place; it needs no widgets and is kept with the notebook."""

import io
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, RenderableType

__all__ = ["CellOutput"]

INTERVAL = 0.1
"""Seconds between two drawings at least."""

_WIDTH = 100
_FORM = '<pre style="line-height: normal; margin: 0">{code}</pre>'


class CellOutput:
    """What the running cell shows of the work: phases that ended, and those that go on, one inside another."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cell: object = None
        self._handle: Any = None
        self._ended: list[RenderableType] = []
        self._going_on: list[Callable[[], RenderableType]] = []
        self._drawn = 0.0

    def begin(self, bars: Callable[[], RenderableType]) -> None:
        """Show these, too, below what goes on already."""
        from IPython import get_ipython

        cell = get_ipython().execution_count
        if cell != self._cell:
            self._cell, self._handle, self._ended, self._going_on = cell, None, [], []
        self._going_on.append(bars)
        self.draw(now=True)

    def end(self, bars: Callable[[], RenderableType], *, keep: bool) -> None:
        """They are over; `keep`: they stay as they are now."""
        self._going_on.remove(bars)
        if keep:
            self._ended.append(bars())
        self.draw(now=True)

    def draw(self, *, now: bool = False) -> None:
        """Draw everything again, unless that was done right before."""
        if not now and self._clock() - self._drawn < INTERVAL:
            return
        from IPython.display import HTML, display

        self._drawn = self._clock()
        shown = HTML(_html([*self._ended, *(bars() for bars in self._going_on)]))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def _html(parts: list[RenderableType]) -> str:
    """What rich draws, as an element of a page; nothing if there are no parts."""
    if not parts:
        return ""
    console = Console(
        file=io.StringIO(),
        record=True,
        width=_WIDTH,
        force_terminal=True,
        force_jupyter=False,
        color_system="truecolor",
    )
    console.print(*parts, sep="\n")
    return console.export_html(inline_styles=True, code_format=_FORM)
