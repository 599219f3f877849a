"""Size against quality: every candidate that a search measured, beside what it is compared with."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tracenas.formats import decimal, grouped, plural
from tracenas.reporting.charts.dynamics import GenerationFigures
from tracenas.reporting.charts.svg import Frame, circle, left_margin, padded, text, ticks
from tracenas.reporting.data.run import Compared, RunData
from tracenas.reporting.labels import model_kind

__all__ = ["QualityChart", "quality_chart"]


@dataclass(frozen=True)
class QualityChart:
    """The picture, what is not within it, and its legend [(class, name)]."""

    picture: Markup
    note: str
    legend: list[tuple[str, str]]


@dataclass(frozen=True)
class _Mark:
    """One model: its parameters, its loss on the calibration, and how it is drawn."""

    params: int
    loss: float
    style: str
    radius: float
    tip: str


def quality_chart(run: RunData, history: Sequence[GenerationFigures], rows: Sequence[Compared]) -> QualityChart | None:
    """Parameters and the loss on the calibration of all candidates that have one, and of the models in `rows`.

    The vertical axis goes from the base (a line: it is far to the right) to the worst of the last elites, uniform and
    the best start; what has a higher loss stands at the upper edge. None where no two candidates have a loss.
    """
    dots = [
        _Mark(c.params, c.loss, "dot", 2.4, _tip(c.id, c.params, c.loss) + f", generation {c.generation}")
        for c in run.candidates
        if c.params and c.loss is not None
    ]
    if len(dots) < 2:
        return None
    named = [
        _Mark(row.params, row.loss, f"mark {model_kind(row.name)}", 6, _tip(_named(row), row.params, row.loss))
        for row in rows
        if row.name != "base" and row.params and row.loss is not None
    ]
    base = next((row.loss for row in rows if row.name == "base"), None)
    span = padded(*_range(_reference(run, history, [dot.loss for dot in dots], base)), 0.08, 0.01)
    scale, name = (100 / run.base_params, "% of base") if run.base_params else (1e-6, "millions")
    sizes = [scale * mark.params for mark in (*dots, *named)]
    frame = Frame(padded(*_range(sizes), 0.06, 0.5), span, left=left_margin(ticks(*span)))
    parts = [
        frame.y_axis("loss, nats per token", ticks(*span)),
        frame.x_axis(f"parameters, {name}", ticks(*frame.x_range)),
    ]
    if base is not None:
        parts.append(frame.polyline([(x, base) for x in frame.x_range], "base-line"))
        parts.append(text(frame.end, frame.y(base) - 6, f"base {decimal(base)}", "tick", "end"))
    parts += [_drawn(frame, mark, scale) for mark in (*dots, *named)]
    return QualityChart(
        frame.svg(f"Parameters and loss of {plural(len(dots), 'candidate')}", *parts),
        _note(run, len(dots), sum(mark.loss > span[1] for mark in dots)),
        [("dot", "candidate"), *_legend(rows, base)],
    )


def _reference(
    run: RunData, history: Sequence[GenerationFigures], losses: Sequence[float], base: float | None
) -> list[float]:
    """The losses that the axis spans: with nothing to compare with, the better half of the candidates'."""
    uniform = run.compared("uniform") or run.starts.get("uniform")
    starts = [start.loss for start in run.starts.values() if start.loss is not None]
    rivals = [uniform.loss] if uniform is not None and uniform.loss is not None else []
    rivals += [min(starts)] if starts else []
    elites = [c.loss for c in history[-1].elites if c.loss is not None]
    return [min(losses), *elites, *(rivals or [statistics.median(losses)]), *([base] if base is not None else [])]


def _drawn(frame: Frame, mark: _Mark, scale: float) -> Markup:
    above = mark.loss > frame.y_range[1]
    y = frame.y(min(mark.loss, frame.y_range[1]))
    return circle(frame.x(scale * mark.params), y, mark.radius, mark.style + (" low" if above else ""), tip=mark.tip)


def _tip(name: str, params: int, loss: float) -> str:
    return f"{name}: loss {decimal(loss)}, {grouped(params)} parameters"


def _named(row: Compared) -> str:
    return f"{row.name} ({row.architecture.id})" if row.architecture else row.name


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _note(run: RunData, measured: int, above: int) -> str:
    rest = len(run.candidates) - measured
    parts = [f"{plural(above, 'candidate')} above the chart"] * bool(above)
    parts += [f"{plural(rest, 'candidate')} without a full loss (stopped early or failed) not shown"] * bool(rest)
    return "Loss on the calibration text, as scored." + (f" {'; '.join(parts)}." if parts else "")


def _legend(rows: Sequence[Compared], base: float | None) -> list[tuple[str, str]]:
    names = {"uniform": "uniform", "random": "random", "other": "one-shot start", "found": "found"}
    shown = {model_kind(row.name) for row in rows if row.loss is not None and row.params}
    kinds = [(f"mark {kind}", name) for kind, name in names.items() if kind in shown]
    return kinds + [("base", "base")] * (base is not None)
