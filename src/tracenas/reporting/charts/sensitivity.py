"""What every width of every sub-block is predicted to cost, and which of them the found architecture has."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from tracenas.formats import decimal
from tracenas.reporting.charts.dynamics import layer_names
from tracenas.reporting.charts.heat import Box, heat_cell
from tracenas.reporting.charts.svg import Frame, join, rect, text
from tracenas.reporting.data.run import JournalCandidate, RunData
from tracenas.reporting.labels import NAMES, UNIT_NAMES
from tracenas.saliency.sensitivity.table import WidthCosts

__all__ = ["CostScale", "cost_keys", "cost_scale", "sensitivity_chart"]

COLUMNS = 48  # cells of a row at most; of more widths, those at equal steps are shown
DECADES = 4  # of costs that colours tell apart
BYPASS = 26.0  # width of the column of bypasses
SUB_BLOCKS = {"heads": "attention", "kv_heads": "attention", "cross_heads": "cross_attention", "channels": "mlp"}


@dataclass(frozen=True)
class CostScale:
    """The costs at the ends of the colours, in nats per token; logarithmic in between."""

    low: float
    high: float

    def share(self, rise: float) -> float:
        """Where a cost lies, from 0 to 1."""
        if rise <= self.low:
            return 0.0
        return min(1.0, math.log(rise / self.low) / math.log(self.high / self.low))


def cost_scale(run: RunData) -> CostScale:
    """One scale for all sub-blocks, so that their colours compare, from a power of ten to the highest cost."""
    high = max(float(one.rise.max()) for one in run.costs.values())
    return CostScale(10.0 ** (round(math.log10(high)) - DECADES), high) if high > 0 else CostScale(1e-4, 1.0)


def cost_keys(run: RunData) -> list[str]:
    """The kinds of sub-blocks, by their units, whose costs the run has."""
    return [key for key in NAMES if any(_rows(run, key))]


def sensitivity_chart(run: RunData, best: JournalCandidate, key: str) -> Markup:
    """Blocks by widths of one kind of sub-block, the cost as colour; the found width of every block is outlined.

    A cell reaches from the next smaller width that is shown to its own, and counts as the found one if that lies in it;
    bypasses stand apart on the left.
    """
    rows = list(_rows(run, key))
    cell_h = max(9.0, min(34.0, 250 / len(rows)))
    frame = Frame((0, 1), (0, 1), height=14 + cell_h * len(rows) + 48, left=44)
    scale, names, cells, outlines = cost_scale(run), layer_names(best.architecture), [], []
    for place, (index, costs) in enumerate(rows):
        kept = dict(best.architecture.layers[index].kept)[key]
        for width, chosen, box in _cells(costs, kept, frame, frame.top + cell_h * place, cell_h):
            what = f"{width:,} of {costs.widths[-1]:,} {UNIT_NAMES[key]}" if width else "bypassed"
            rise = costs.at(width)
            tip = f"layer {names[index]}, {what}: {decimal(rise, 3)} nats{', found' if chosen else ''}"
            cells.append(heat_cell(box, scale.share(rise), key, tip))
            outlines += [rect(*box, "choice")] if chosen else []
    step = max(1, math.ceil(15 / cell_h))
    labels = [
        text(frame.left - 7, frame.top + cell_h * (place + 0.5) + 4, names[index], "tick", "end")
        for place, (index, _) in enumerate(rows)
        if place % step == 0
    ]
    return frame.svg(f"Predicted cost of {NAMES[key]} widths", *cells, *outlines, *labels, _axis(frame))


def _rows(run: RunData, key: str) -> Iterator[tuple[int, WidthCosts]]:
    """(block, costs) of the blocks that have this kind of sub-block, in these units."""
    for index, units in enumerate(run.base_units.get(key, ())):
        costs = run.costs.get((index, SUB_BLOCKS[key]))
        if units and costs is not None and costs.widths[-1] == units:
            yield index, costs


def _cells(costs: WidthCosts, kept: int, frame: Frame, top: float, height: float) -> Iterator[tuple[int, bool, Box]]:
    """(width, whether it is the one that is kept, where) of a row, from the bypass to the full width."""
    widths = costs.widths.tolist()
    steps = np.linspace(0, len(widths) - 1, min(len(widths), COLUMNS + 1))
    gap = min(0.6, 0.06 * height)
    yield 0, kept == 0, (frame.left, top, BYPASS - 6, height - gap)
    for before, width in itertools.pairwise(widths[round(step)] for step in steps):
        left, right = (_x(frame, count / widths[-1]) for count in (before, width))
        chosen = before < kept <= width
        yield kept if chosen and kept in widths else width, chosen, (left, top, right - left - gap, height - gap)


def _x(frame: Frame, share: float) -> float:
    """Where a share of the units ends, right of the column of bypasses."""
    start = frame.left + BYPASS
    return start + share * (frame.end - start)


def _axis(frame: Frame) -> Markup:
    marks = [text(_x(frame, at), frame.base + 18, f"{100 * at:.0f} %", "tick", "middle") for at in (0.25, 0.5, 0.75)]
    ends = [
        text(frame.left + (BYPASS - 6) / 2, frame.base + 18, "none", "tick", "middle"),
        text(frame.end, frame.base + 18, "100 %", "tick", "end"),
    ]
    return join(*ends, *marks, frame.x_name("units kept"), frame.y_name("layer"))
