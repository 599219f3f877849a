"""A latency table brought to scale: constant and slope of its sums, fitted on whole architectures that were measured.

Widths are measured near the base. Smaller models as a whole are faster than that tells, where more of them fits into
the cache, or slower, where overheads stay: one factor for all sub-blocks and one constant, by point and phase, take
most of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from tracenas.benchmark.latency_table import PHASES, KindLatency, LatencyTable
from tracenas.benchmark.width_latency import Latencies
from tracenas.space.architecture import Architecture
from tracenas.space.sub_block import LayerSpec

__all__ = ["FITS", "fitted"]

FITS = 6
"""Whole architectures that a table is fitted on, beside the base: other ones than it is checked on."""

Line = tuple[float, float]
"""Constant and factor."""


def fitted(
    table: LatencyTable, layers: Sequence[LayerSpec], archs: Sequence[Architecture], measured: Sequence[Latencies]
) -> LatencyTable:
    """The table whose sums are nearest to what these architectures took, by the squares of relative errors."""
    lines: list[dict[str, Line]] = []
    for i in range(len(table.points)):
        sums = [table.predict(layers, arch, i) for arch in archs]
        lines.append({})
        for phase in PHASES:
            outside = table.outside[i][phase]
            lines[i][phase] = _line([s[phase] - outside for s in sums], [m[i][phase] for m in measured])
    scaled = tuple({p: at[p] * line[p][1] for p in PHASES} for at, line in zip(table.block, lines, strict=True))
    kinds = tuple(_scaled(kind, lines) for kind in table.kinds)
    return replace(table, outside=tuple({p: line[p][0] for p in PHASES} for line in lines), kinds=kinds, block=scaled)


def _line(sums: Sequence[float], measured: Sequence[float]) -> Line:
    """Neither is negative: where one comes out so, the line is one through the origin."""
    x, y = np.array(sums), np.array(measured)
    (constant, factor), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], axis=1), np.ones_like(y), rcond=None)
    if constant >= 0 and factor > 0:
        return float(constant), float(factor)
    squares = float(((x / y) ** 2).sum())
    return (0.0, float((x / y).sum()) / squares) if squares else (float(np.median(y)), 1.0)


def _scaled(kind: KindLatency, lines: Sequence[Mapping[str, Line]]) -> KindLatency:
    latency = tuple(
        {p: tuple(value * line[p][1] for value in at[p]) for p in PHASES}
        for at, line in zip(kind.latency, lines, strict=True)
    )
    return replace(kind, latency=latency)
