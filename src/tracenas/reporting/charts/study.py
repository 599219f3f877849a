"""The charts of a study: intervals per proxy, a scatter plot per proxy, ranks before and after longer recovery."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup

from tracenas.formats import MINUS, decimal
from tracenas.reporting.charts.svg import Frame, circle, line, padded, rect, text, ticks

__all__ = ["interval_chart", "kind_legend", "rank_chart", "scatter"]

Row = Mapping[str, Any]
_STYLE = {"uniform": "uniform", "mutation": "found", "random": "random"}
_NAMES = {"uniform": "uniform", "mutation": "mutation of uniform", "random": "random"}


def interval_chart(rows: Sequence[Row], target: str) -> Markup:
    """ρ of every proxy with a target and its 95 % interval, one row each; narrow enough to be read on a telephone."""
    step = 23.0
    left = 30 + 7.4 * max(len(r["name"]) for r in rows)
    frame = Frame((-1, 1), (0, 1), width=600, height=62 + step * len(rows), left=left, right=24)
    parts = [frame.x_axis("Spearman ρ, 95 % interval", [-1, -0.5, 0, 0.5, 1])]
    parts += [line(frame.x(v), frame.top, frame.x(v), frame.base, "grid") for v in (-1, -0.5, 0, 0.5, 1)]
    for place, row in enumerate(rows):
        y = frame.top + step * (place + 0.5)
        correlation = row["targets"][target]
        parts.append(text(frame.left - 12, y + 4, row["name"], "row-label", "end"))
        rho = correlation["rho"]
        if rho["value"] is None:
            parts.append(text(frame.x(0), y + 4, f"undefined: {correlation['reason']}", "tick", "middle"))
            continue
        tau, pairs = correlation["tau"]["value"], correlation["pairs"]
        tip = f"{row['name']}: ρ {rho['value']:.2f}, τ {tau:.2f}, {pairs} architectures"
        if rho["low"] is not None:
            low, high = frame.x(rho["low"]), frame.x(rho["high"])
            parts.append(rect(low, y - 3, max(high - low, 2), 6, "band", rx=3, tip=tip))
        parts.append(circle(frame.x(rho["value"]), y, 5.5, "mark found", tip=tip))
    return frame.svg("Spearman correlation of every proxy with its interval", *parts)


def scatter(records: Sequence[Row], proxy: str, target: Row) -> Markup | None:
    """A proxy's score against a target, one mark per architecture; None where fewer than two have both."""
    measured = [(r, r["scores"].get(proxy), r["targets"].get(target["name"], {}).get("value")) for r in records]
    points = [(r, float(x), float(y)) for r, x, y in measured if x is not None and y is not None]
    if len(points) < 2:
        return None
    frame = Frame(_span([x for _, x, _ in points]), _span([y for _, _, y in points]), width=360, height=250, left=58)
    across = ticks(*frame.x_range, 3)
    parts = [
        frame.y_axis(target["label"] + (", nats/token" if target["loss"] else ""), ticks(*frame.y_range, 4)),
        frame.x_axis("score, higher is better", across, [_short(v, across) for v in across]),
    ]
    for record, x, y in sorted(points, key=lambda point: point[0]["kind"] == "uniform"):
        name, style = _NAMES.get(record["kind"], record["kind"]), _STYLE.get(record["kind"], "other")
        tip = f"{name}, {record['params']:,} parameters: {decimal(x)}, {decimal(y)}"
        inside = (_clipped(x, frame.x_range), _clipped(y, frame.y_range))
        mark = f"mark {style}" if inside == (x, y) else "dot low"
        parts.append(circle(frame.x(inside[0]), frame.y(inside[1]), 6 if style == "uniform" else 4.5, mark, tip=tip))
    return frame.svg(f"{proxy} against {target['label']}", *parts)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A range that a few values far from the others do not squeeze: quartiles and three times their distance."""
    first, third = (float(q) for q in np.quantile(values, (0.25, 0.75)))
    reach = 3 * (third - first) or math.inf
    low, high = max(min(values), first - reach), min(max(values), third + reach)
    return padded(low, high, 0.06, 0.05 * abs(high) or 1.0)


def _clipped(value: float, span: tuple[float, float]) -> float:
    return min(max(value, span[0]), span[1])


def _short(value: float, at: Sequence[float]) -> str:
    """A tick of an axis that may be anything from 1e-9 to 1e9."""
    largest, step = max(map(abs, at)), min((b - a for a, b in pairwise(at)), default=0.0)
    power = math.floor(math.log10(largest)) if largest else 0
    scaled = 10.0**power if power >= 6 or power < -2 else 1.0
    gap = step / scaled or 1.0
    digits = next((d for d in range(7) if abs(round(gap, d) - gap) < 1e-3 * gap), 6)
    exponent = "" if scaled == 1.0 else f"e{power}"
    return (f"{value / scaled:,.{digits}f}" + exponent).replace("-", MINUS)


def kind_legend(records: Sequence[Row]) -> list[tuple[str, str]]:
    """(style, name) of the marks that there are."""
    return [(style, _NAMES[kind]) for kind, style in _STYLE.items() if any(r["kind"] == kind for r in records)]


def rank_chart(records: Sequence[Row], before: Row, after: Row) -> Markup | None:
    """Ranks by one target on the left, by another on the right; 1 is the best."""
    targets = (before, after)
    ranked = [r for r in records if all(r["targets"].get(t["name"], {}).get("value") is not None for t in targets)]
    if len(ranked) < 2:
        return None
    places = [_ranks(ranked, t) for t in targets]
    count = len(ranked)
    frame = Frame((0, 1), (count + 0.5, 0.5), width=480, height=max(260, 70 + 15 * count), left=150, right=150)
    low, high = frame.left, frame.end
    parts = [line(x, frame.top, x, frame.base, "axis") for x in (low, high)]
    parts += [
        text(x, frame.base + 20, t["label"], "axis-label", "middle") for x, t in zip((low, high), targets, strict=True)
    ]
    for record in sorted(ranked, key=lambda r: r["kind"] == "uniform"):
        a, b = (p[record["id"]] for p in places)
        uniform, moved = record["kind"] == "uniform", abs(a - b) >= count / 4
        parts.append(
            line(low, frame.y(a), high, frame.y(b), f"rank{' uniform' if uniform else ' moved' if moved else ''}")
        )
        for x, rank, target, anchor, shift in ((low, a, before, "end", -10), (high, b, after, "start", 10)):
            value = decimal(record["targets"][target["name"]]["value"])
            parts.append(circle(x, frame.y(rank), 4.5, f"mark {_STYLE.get(record['kind'], 'other')}"))
            parts.append(text(x + shift, frame.y(rank) + 4, f"uniform {value}" if uniform else value, "tick", anchor))
    return frame.svg(f"Ranks by {before['label']} and by {after['label']}", *parts)


def _ranks(records: Sequence[Row], target: Row) -> dict[str, int]:
    sign = 1 if target["loss"] else -1
    ordered = sorted(records, key=lambda r: sign * r["targets"][target["name"]]["value"])
    return {r["id"]: place for place, r in enumerate(ordered, start=1)}
