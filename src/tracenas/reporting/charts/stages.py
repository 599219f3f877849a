"""The charts of what came after a search: perplexity stage by stage, and the course of training."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from tracenas.formats import decimal
from tracenas.reporting.charts.named import NamedChart
from tracenas.reporting.charts.svg import WIDE, Frame, log_ticks, padded, tick_label, ticks
from tracenas.reporting.data.run import Compared
from tracenas.reporting.data.stages import Recovery
from tracenas.reporting.labels import model_kind

__all__ = ["progress_chart", "training_charts"]

Series = tuple[str, list[tuple[int, float]]]


def progress_chart(rows: Sequence[Compared], stages: Sequence[str], base: Compared | None) -> NamedChart:
    """Perplexity of the architectures as scored and after every later stage; the base's as a level line."""
    names = ["as scored", *stages]
    lines = []
    for row in rows:
        points = [(0, row.perplexity), *((names.index(stage), p) for stage, p in row.later)]
        lines.append((row.name, [(i, p) for i, p in points if p is not None and p > 0]))
    level = base.perplexity if base is not None and base.perplexity else None
    values = [p for _, line in lines for _, p in line] + ([level] if level else [])
    low, high = min(values), max(values)
    log = high / low > WIDE
    span = (low / 1.15, high * 1.15) if log else padded(low, high, 0.08, 0.05 * high)
    frame = Frame((-0.25, len(names) - 0.75), span, left=76 if log else 56, log_y=log)
    vertical = frame.y_axis("perplexity (log scale)", *log_ticks(*span)) if log else None
    parts = [vertical or frame.y_axis("perplexity", ticks(*span)), frame.x_axis("", range(len(names)), names)]
    if level:
        parts.append(frame.polyline([(x, level) for x in frame.x_range], "base-line"))
    for name, line in lines:
        tips = [(i, p, f"{name}, {names[i]}: perplexity {decimal(p)}") for i, p in line]
        parts += [
            frame.polyline(line, f"line {model_kind(name)}"),
            *frame.points(tips, 4.5, f"point {model_kind(name)}"),
        ]
    legend = _legend([name for name, _ in lines]) + ([("base", "base")] if level else [])
    picture = frame.svg("Perplexity after every stage", *parts)
    return NamedChart("Perplexity, stage by stage", "The same text and windows throughout.", picture, legend)


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"line {model_kind(name)}", name) for name in names]


def training_charts(recoveries: Sequence[Recovery]) -> list[NamedChart]:
    """Training loss, validation loss and held-out perplexity by step, a line per recovery."""
    charts = []
    for key, title, label in (
        ("loss", "Training loss", "loss, nats per token"),
        ("validation_nll", "Validation loss, which chooses", "loss, nats per token"),
        ("perplexity", "Held-out perplexity, which is reported", "perplexity"),
    ):
        series = [(recovery.name, recovery.series(key)) for recovery in recoveries]
        drawn = [(name, points) for name, points in series if len(points) > 1]
        if drawn:
            name, [(first, start), *_, (last, end)] = drawn[0]
            note = f"{name}: {decimal(start)} at step {first:,}, {decimal(end)} at step {last:,}."
            legend = _legend([name for name, _ in drawn]) if len(recoveries) > 1 else []
            charts.append(NamedChart(title, note, _steps_chart(drawn, title, label), legend))
    return charts


def _steps_chart(series: Sequence[Series], title: str, label: str) -> Markup:
    values = [v for _, points in series for _, v in points]
    low, high = min(values), max(values)
    log = low > 0 and high / low > 20
    last = max(step for _, points in series for step, _ in points)
    if log:
        margin = (high / low) ** 0.06
        low, high = low / margin, high * margin
        at = [10**v for v in ticks(math.log10(low), math.log10(high))]
    else:
        low, high = padded(low, high, 0.06, 0.05 * abs(high) or 1.0)
        at = ticks(low, high)
    frame = Frame((0, last), (low, high), log_y=log)
    steps = ticks(0, last, integer=True)
    parts = [
        frame.y_axis(f"{label}{' (log scale)' if log else ''}", at, [decimal(v, 2) for v in at] if log else None),
        frame.x_axis("step", steps, [tick_label(v, steps) for v in steps]),
    ]
    for name, points in series:
        parts.append(frame.polyline(points, f"line {model_kind(name)}"))
        if len(points) <= 60:
            tips = [(step, v, f"{name}, step {step:,}: {decimal(v)}") for step, v in points]
            parts += frame.points(tips, 2.6, f"point {model_kind(name)}")
    return frame.svg(f"{title} by step", *parts)
