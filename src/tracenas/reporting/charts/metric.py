"""The charts of a metric search: losses by generation and by complexity, and what expressions use."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from tracenas.formats import percent, perplexity
from tracenas.reporting.charts.svg import Frame, circle, line, padded, rect, star, text, ticks
from tracenas.symbolic.analysis import front

__all__ = ["front_chart", "generations_chart", "usage_chart"]

Row = Mapping[str, Any]


def _loss_range(scored: Sequence[Row]) -> tuple[float, float]:
    """The losses' range with a margin, such that a few bad metrics do not squeeze it."""
    losses = [float(r["loss"]) for r in scored]
    low, third = min(losses), float(np.quantile(losses, 0.75))
    return padded(low, min(max(losses), third + 0.5 * (third - low)), 0.06, 0.01)


def generations_chart(history: Sequence[Row], scored: Sequence[Row]) -> Markup:
    """The loss of every metric by generation, the best so far and the new ones' median.

    Args:
        history: a row per generation, as summary.json has them.
        scored: the journal's records that have a score.
    """
    low, high = _loss_range(scored)
    frame = Frame((-0.6, len(history) - 0.4), (low, high))
    parts = [
        frame.y_axis("NLL, nats/token", ticks(low, high)),
        frame.x_axis("generation", ticks(0, len(history) - 1, 6, integer=True)),
    ]
    for generation in range(len(history)):
        new = [r for r in scored if r["generation"] == generation]
        for place, record in enumerate(new):
            parts.append(_dot(frame, generation + 0.7 * ((place + 0.5) / len(new) - 0.5), record))
    losses: dict[int, list[float]] = {}
    for record in scored:
        losses.setdefault(record["generation"], []).append(record["loss"])
    best = [(g["generation"], -g["best"]) for g in history if g["best"] is not None]
    middle = [(number, float(np.median(values))) for number, values in losses.items()]
    for points, style in ((best, "best-line"), (middle, "mean-line")):
        parts.append(frame.polyline([(n, y) for n, y in points if y <= high], style))
    return frame.svg("Loss of every metric by generation, and of the best", *parts)


def front_chart(scored: Sequence[Row]) -> Markup:
    """Loss against the number of nodes; the metrics that none beats in both are joined."""
    low, high = _loss_range(scored)
    most = max(r["params"] for r in scored)
    frame = Frame((0, most + 1), (low, high))
    best = [r for r in front(scored) if r["loss"] <= high]
    parts = [frame.y_axis("NLL, nats/token", ticks(low, high)), frame.x_axis("nodes", ticks(1, most, 8, integer=True))]
    parts += [_dot(frame, r["params"], r) for r in scored]
    parts.append(frame.polyline([(r["params"], r["loss"]) for r in best], "best-line"))
    parts += [star(frame.x(r["params"]), frame.y(r["loss"]), 7, tip=_tip(r)) for r in best]
    return frame.svg("Loss against the number of nodes of every metric; the front is marked", *parts)


def _dot(frame: Frame, x: float, record: Row) -> Markup:
    """A metric's mark; hollow, at the edge, where its loss lies above the picture."""
    high = frame.y_range[1]
    style = "dot low" if record["loss"] > high else "dot"
    return circle(frame.x(x), frame.y(min(high, record["loss"])), 2.4, style, tip=_tip(record))


def _tip(record: Row) -> str:
    return f"{record['arch']['metric']}: perplexity {perplexity(record['loss'])}, {record['params']} nodes"


def usage_chart(usage: Sequence[Row]) -> Markup:
    """The share of the metrics, and of their best quarter, that use each operator and variable."""
    frame = Frame((0, 1), (0, 1), height=62 + 24.0 * len(usage), left=84, right=30)
    parts = [frame.x_axis("share of the metrics", [0, 0.5, 1], [percent(v, 0) for v in (0, 0.5, 1)])]
    for place, row in enumerate(usage):
        y = frame.top + 24 * place
        parts.append(text(frame.left - 10, y + 14, row["name"], "row-label", "end"))
        parts.append(line(frame.left, y + 22, frame.end, y + 22, "grid"))
        for key, top, style in (("share_best", 2, "fill accent"), ("share", 11, "gone")):
            tip = f"{row['name']}: {percent(row[key], 0)}"
            parts.append(rect(frame.left, y + top, frame.x(row[key]) - frame.left, 8, style, tip=tip))
    return frame.svg("Share of the metrics that use each operator and variable", *parts)
