"""The journal of a table that is being measured, from which an interrupted one goes on."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracenas.benchmark.width_latency import TurnTimes
from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.reporting.progress import Phase
from tracenas.space.architecture import Architecture

__all__ = ["JournalledTurns", "Measure"]

Measure = Callable[[Sequence[Architecture], Callable[[int], None]], TurnTimes]
"""Measures architectures in turns with the base, and tells of every trial."""


class JournalledTurns:
    """Trials, or what the journal of an interrupted table says of them.

    Args:
        path: of the journal.
        measure: what is not in there.
        settings: that must be the journal's.
        resume: whether there may be a journal.

    Raises:
        UserError: for a journal that is there and may not, or is of other settings.
    """

    def __init__(self, path: Path, measure: Measure, settings: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._measure = path, measure
        self.steps: Phase | None = None
        self._journal = Journal(path)
        self._known = self._journal.read()
        if self._known and not resume:
            raise UserError(f"{path}: an interrupted table is there: --resume goes on with it, or name another --out")
        if self._known and self._known[0] != settings:
            raise UserError(f"{path}: measured with other settings, or on another machine; name another --out")
        if not self._known:
            self._journal.append(settings)
        self._place = 1

    def __call__(self, archs: Sequence[Architecture]) -> TurnTimes:
        """These, in turns with the base."""
        names, place = [arch.id for arch in archs], self._place
        self._place += 1
        if place < len(self._known):
            record = self._known[place]
            if record.get("archs") != names:
                raise UserError(
                    f"{self.path}: line {place + 1} is of other architectures; remove the file to begin anew"
                )
            return TurnTimes(tuple(map(tuple, record["base"])), tuple(tuple(map(tuple, o)) for o in record["others"]))
        measured = self._measure(archs, self._advance)
        self._journal.append({"archs": names, "base": measured.base, "others": measured.others})
        return measured

    def _advance(self, count: int) -> None:
        if self.steps is not None:
            self.steps.advance(count)
