"""The charts of what came after a search: perplexity stage by stage, and the course of training."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from tracenas.formats import decimal
from tracenas.reporting.charts.named import NamedChart
from tracenas.reporting.charts.svg import WIDE, Frame, label_margin, log_ticks, padded, text, tick_label, ticks
from tracenas.reporting.data.run import Compared
from tracenas.reporting.data.stages import Checkpoint, Recovery, Stages
from tracenas.reporting.labels import cost_axis, model_kind

__all__ = ["checkpoint_charts", "progress_chart", "training_charts"]

Series = tuple[str, list[tuple[int, float]]]
_SERIES = 6
"""Colours of lines that have no kind of their own."""


def progress_chart(rows: Sequence[Compared], stages: Sequence[str], base: Compared | None) -> NamedChart:
    """Perplexity of the architectures as scored and after every later stage; the base's as a level line."""
    names = ["as scored", *stages]
    lines = []
    for row in rows:
        points = [(0, row.perplexity), *((names.index(stage), p) for stage, p in row.later)]
        lines.append((row.name, [(i, p) for i, p in points if p is not None and p > 0]))
    level = base.perplexity if base is not None and base.perplexity else None
    values = [p for _, line in lines for _, p in line] + ([level] if level else [])
    frame, axis = _perplexities((-0.25, len(names) - 0.75), values)
    parts = [axis, frame.x_axis("", range(len(names)), names)]
    if level:
        parts.append(frame.polyline([(x, level) for x in frame.x_range], "base-line"))
    for name, line in lines:
        tips = [(i, p, f"{name}, {names[i]}: perplexity {decimal(p)}") for i, p in line]
        parts += [
            frame.polyline(line, f"line {model_kind(name)}"),
            *frame.points(tips, 4.5, f"point {model_kind(name)}"),
        ]
    legend = [(f"line {model_kind(name)}", name) for name, _ in lines] + ([("base", "base")] if level else [])
    picture = frame.svg("Perplexity after every stage", *parts)
    return NamedChart("Perplexity, stage by stage", "The same text and windows throughout.", picture, legend)


def _perplexities(x_range: tuple[float, float], values: Sequence[float]) -> tuple[Frame, Markup]:
    """A plot of perplexities with its vertical axis, logarithmic where they are far apart."""
    low, high = min(values), max(values)
    log = high / low > WIDE
    span = (low / 1.15, high * 1.15) if log else padded(low, high, 0.08, 0.05 * high)
    frame = Frame(x_range, span, left=76 if log else 56, log_y=log)
    if log:
        return frame, frame.y_axis("perplexity (log scale)", *log_ticks(*span))
    return frame, frame.y_axis("perplexity", ticks(*span))


def checkpoint_charts(stages: Stages) -> list[NamedChart]:
    """Perplexity of a front's checkpoints by size, and by the time per token where that was measured."""
    if not stages.checkpoints:
        return []
    base, *written = stages.checkpoints
    axis, scale = cost_axis(stages.cost, base.cost or 1.0)
    places = [("Perplexity by size", axis, [scale * (one.cost or 0.0) for one in written])]
    times = [one.decoding for one in written]
    if all(time is not None for time in times):
        named = "Perplexity by speed", "time per token, ms"
        places.append((*named, [time for time in times if time is not None]))
    charts = (_of_checkpoints(name, axis, base, written, at) for name, axis, at in places)
    return [chart for chart in charts if chart is not None]


def _of_checkpoints(
    name: str, axis: str, base: Checkpoint, written: Sequence[Checkpoint], at: Sequence[float]
) -> NamedChart | None:
    """Lines of the checkpoints as written and as recovered; the base's perplexity as a level line."""
    reached = [("as written", "other", [one.perplexity for one in written])]
    reached.append(("recovered", "found", [one.recovered for one in written]))
    lines = []
    for title, style, perplexities in reached:
        known = sorted((x, p, one.size) for x, p, one in zip(at, perplexities, written, strict=True) if p)
        lines += [(title, style, known)] if known else []
    level = [base.perplexity] if base.perplexity else []
    if not lines:
        return None
    frame, vertical = _perplexities(padded(min(at), max(at), 0.08, 0.05 * max(at)), [*level, *_values(lines)])
    parts = [vertical, frame.x_axis(axis, ticks(*frame.x_range))]
    for value in level:
        parts.append(frame.polyline([(x, value) for x in frame.x_range], "base-line"))
        parts.append(text(frame.left + 4, frame.y(value) - 6, f"base {decimal(value)}", "tick"))
    for title, style, known in lines:
        tips = [(x, p, f"{size} {title}: perplexity {decimal(p)}") for x, p, size in known]
        parts.append(frame.polyline([(x, p) for x, p, _ in known], f"line {style}"))
        parts += frame.points(tips, 4.5, f"point {style}")
    legend = [(f"line {style}", title) for title, style, _ in lines] + [("base", "base")] * len(level)
    return NamedChart(
        name, "The same text and windows throughout.", frame.svg(f"{name} of the checkpoints", *parts), legend
    )


def _values(lines: Sequence[tuple[str, str, Sequence[tuple[float, float, str]]]]) -> list[float]:
    return [p for _, _, known in lines for _, p, _ in known]


def _style(name: str, place: int) -> str:
    """How a line is drawn: as the model's kind, or as one of several that have none, such as sizes."""
    kind = model_kind(name)
    return f"series-{place % _SERIES}" if kind == "other" else kind


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
        styles = {name: _style(name, place) for place, (name, _) in enumerate(series)}
        if drawn:
            name, [(first, start), *_, (last, end)] = drawn[0]
            note = f"{name}: {decimal(start)} at step {first:,}, {decimal(end)} at step {last:,}."
            legend = [(f"line {styles[name]}", name) for name, _ in drawn] if len(recoveries) > 1 else []
            charts.append(NamedChart(title, note, _steps_chart(drawn, styles, title, label), legend))
    return charts


def _steps_chart(series: Sequence[Series], styles: Mapping[str, str], title: str, label: str) -> Markup:
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
    names = [decimal(v, 2) for v in at] if log else [tick_label(v, at) for v in at]
    frame = Frame((0, last), (low, high), left=label_margin(names), log_y=log)
    steps = ticks(0, last, integer=True)
    parts = [
        frame.y_axis(f"{label}{' (log scale)' if log else ''}", at, names),
        frame.x_axis("step", steps, [tick_label(v, steps) for v in steps]),
    ]
    for name, points in series:
        style = styles[name]
        parts.append(frame.polyline(points, f"line {style}"))
        if len(points) <= 60:
            tips = [(step, v, f"{name}, step {step:,}: {decimal(v)}") for step, v in points]
            parts += frame.points(tips, 2.6, f"point {style}")
    return frame.svg(f"{title} by step", *parts)
