"""Scores of all proxies of a study for one architecture, and what each proxy costs on its own."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from tracenas.space.architecture import Architecture

if TYPE_CHECKING:
    from tracenas.models.surgery.supernet import Realisation
    from tracenas.pipeline.session import Session
    from tracenas.scoring.panel import PanelScore

__all__ = ["alone", "scorer"]


def scorer(
    session: "Session", names: Sequence[str], rank: int, compensated: "Realisation | None" = None
) -> "Callable[[Architecture], Mapping[str, PanelScore]]":
    """Scores an architecture by every proxy, from as few passes as they need."""
    from tracenas.pipeline.scoring import make_panel

    return make_panel(session, names, rank, compensated).measure


def alone(
    session: "Session",
    names: Sequence[str],
    rank: int,
    compensated: "Realisation | None",
    arch: Architecture,
) -> dict[str, float]:
    """Seconds that each proxy takes by itself on `arch`: the faster of two runs after a first, which fills memos."""
    seconds = {}
    for name in names:
        measure = scorer(session, (name,), rank, compensated)
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            measure(arch)
            runs.append(time.perf_counter() - started)
        seconds[name] = min(runs[1:])
    return seconds
