"""The charts of a search (TraceNAS Fig. 4) and of its comparison."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from tracenas.formats import decimal, percent, plural, short_count
from tracenas.reporting.charts.dynamics import GenerationFigures, layer_names, retention
from tracenas.reporting.charts.heat import Box, heat_cell
from tracenas.reporting.charts.svg import (
    WIDE,
    Frame,
    circle,
    el,
    hatch,
    join,
    left_margin,
    line,
    log_ticks,
    padded,
    polygon,
    rect,
    star,
    text,
    ticks,
)
from tracenas.reporting.data.run import Compared, JournalCandidate, RunData
from tracenas.reporting.labels import NAMES, model_kind

__all__ = ["COLUMNS", "lowest_ratio", "perplexity_chart", "score_chart", "variance_chart", "width_chart"]

COLUMNS = 100  # generations a heat map shows at most; a longer search is shown at equal steps


def score_chart(history: Sequence[GenerationFigures], best: JournalCandidate | None, label: str) -> tuple[Markup, str]:
    """Scores per generation (Fig. 4a): candidates as dots, the elites' band and mean, the best as a line.

    The axis follows the elites. Returns the picture and a remark on what is below it (empty if nothing).
    """
    scores = [c.score for g in history for c in g.evaluated if c.score is not None]
    low, high = _robust_range([score for g in history for score in g.elite_scores])
    levels = ticks(low, high)
    frame = Frame((history[0].number - 0.6, history[-1].number + 0.6), (low, high), left=left_margin(levels))
    dots, below = _dots(history, frame, low, label)
    with_elites = [g for g in history if g.elites]
    upper = _level(frame, with_elites, lambda scores: scores[0])
    lower = _level(frame, with_elites, lambda scores: scores[-1])
    mean = _level(frame, with_elites, lambda scores: float(np.mean(scores)))
    parts = [
        frame.y_axis("Φ, proxy score" if label == "Φ" else label, levels),
        frame.x_axis("generation", _generation_ticks(history)),
        polygon([(frame.x(x), frame.y(y)) for x, y in (*upper, *lower[::-1])], "band"),
        *dots,
        frame.polyline(mean, "mean-line"),
        frame.polyline(upper, "best-line"),
    ]
    if best is not None and best.score is not None:
        tip = f"found: {label} {decimal(best.score)}, generation {best.generation}"
        places = [(g.number, i, len(g.evaluated)) for g in history for i, c in enumerate(g.evaluated) if c is best]
        parts += [star(_dot_x(frame, *place), frame.y(best.score), 8, tip=tip) for place in places[:1]]
    description = f"{label} of {plural(len(scores), 'candidate')} over {plural(len(history), 'generation')}"
    remark = f"{plural(below, 'candidate')} below the chart (lowest {decimal(min(scores))})" if below else ""
    return frame.svg(description, *parts), remark


def _dots(history: Sequence[GenerationFigures], frame: Frame, low: float, label: str) -> tuple[list[Markup], int]:
    dots, below = [], 0
    for generation in history:
        for place, candidate in enumerate(generation.evaluated):
            if candidate.score is None:
                continue
            below += candidate.score < low
            x = _dot_x(frame, generation.number, place, len(generation.evaluated))
            loss = f", loss {decimal(candidate.loss)}" if candidate.loss is not None else ""
            tip = f"{candidate.id}: {label} {decimal(candidate.score)}{loss}, {short_count(candidate.params)}"
            hidden = candidate.score < low
            dots.append(circle(x, frame.y(max(low, candidate.score)), 2.2, "dot low" if hidden else "dot", tip=tip))
    return dots, below


def _level(
    frame: Frame, history: Sequence[GenerationFigures], figure: Callable[[list[float]], float]
) -> list[tuple[float, float]]:
    """A line through one figure of the elites' scores; a level one where there is a single generation."""
    points = [(float(g.number), max(frame.y_range[0], figure(g.elite_scores))) for g in history]
    return points if len(points) > 1 else [(x + shift, y) for shift in (-0.45, 0.45) for x, y in points]


def _dot_x(frame: Frame, generation: int, place: int, total: int) -> float:
    """Candidates of a generation stand side by side, in the order of their evaluation."""
    step = min(frame.x(1) - frame.x(0), 120)
    return frame.x(generation) + 0.7 * step * ((place + 0.5) / total - 0.5)


def _robust_range(values: Sequence[float]) -> tuple[float, float]:
    """The values' range with a margin, the wider one below, cut where a few low outliers would squeeze all else."""
    if not values:
        return 0.0, 1.0
    high, tenth = max(values), float(np.quantile(values, 0.1))
    low = max(min(values), tenth - 1.5 * (high - tenth))
    span = high - low or max(abs(high) * 0.01, 1e-6)
    return low - 0.25 * span, high + 0.06 * span


def _generation_ticks(history: Sequence[GenerationFigures]) -> list[float]:
    return ticks(history[0].number, history[-1].number, 6, integer=True)


def variance_chart(history: Sequence[GenerationFigures]) -> Markup:
    """Variance of the retention ratios over the population, per generation (Fig. 4d)."""
    keys = [k for k in NAMES if k in history[0].variance]
    values = [g.variance[k] for g in history for k in keys if math.isfinite(g.variance[k])]
    high = max(values, default=0.0) * 1.12 or 1.0
    levels = ticks(0, high)
    frame = Frame((history[0].number - 0.6, history[-1].number + 0.6), (0.0, high), left=left_margin(levels))
    parts = [
        frame.y_axis("variance of kept units / units", levels),
        frame.x_axis("generation", _generation_ticks(history)),
    ]
    for key in keys:
        points = [(g.number, g.variance[key]) for g in history if math.isfinite(g.variance[key])]
        tips = [(n, v, f"{NAMES[key]}, generation {n}: {decimal(v, 3)}") for n, v in points]
        parts += [frame.polyline(points, f"line {key}"), *frame.points(tips, 2.6, f"point {key}")]
    return frame.svg("Variance of the retention ratios in the population, by generation", *parts)


def lowest_ratio(history: Sequence[GenerationFigures], run: RunData) -> float:
    """The lower end of all heat maps' colours: the lowest retention ratio in them, rounded down to tenths."""
    ratios = [w for g in history for w in g.width.values()]
    if run.best:
        ratios += [retention(run.best.architecture, key, units) for key, units in run.base_units.items()]
    values = np.concatenate(ratios) if ratios else np.array([])
    values = values[values > 0]  # neither skipped nor absent
    return min(0.9, math.floor(float(values.min()) * 10) / 10) if len(values) else 0.0


def width_chart(history: Sequence[GenerationFigures], run: RunData, key: str) -> Markup:
    """Retention ratio of one sub-block by layer over the generations (Fig. 4b, c), and of the found model.

    A cell's colour is the elites' mean where they keep the layer; the hatched share of a cell is the share of
    the elites that skip it.
    """
    shown = history[:: math.ceil(len(history) / COLUMNS)]
    units = run.base_units[key]
    first = next(g for g in history if g.elites).elites[0].architecture
    names = layer_names(first)
    rows = [i for i, u in enumerate(units) if u > 0]
    cell_h = max(9.0, min(34.0, 250 / len(rows)))
    frame = Frame((0, 1), (0, 1), height=14 + cell_h * len(rows) + 48, left=44, right=60 if run.best else 14)
    cell_w = (frame.end - frame.left) / len(shown)
    low = lowest_ratio(history, run)
    parts = [el("defs", hatch(f"hatch-{key}"))]
    top = {layer: frame.top + cell_h * place for place, layer in enumerate(rows)}
    columns = [
        (frame.left + cell_w * place, cell_w, g.width[key], g.skipped[key], f"generation {g.number}")
        for place, g in enumerate(shown)
    ]
    if run.best:
        ratios = retention(run.best.architecture, key, units)
        columns.append((frame.width - 48, 34, np.where(ratios > 0, ratios, np.nan), ratios == 0, "found"))
    for left, width, ratios, skipped, name in columns:
        for layer in rows:
            box, tip = (left, top[layer], width, cell_h), f"layer {names[layer]}, {name}: "
            parts.append(_cell(box, float(ratios[layer]), float(skipped[layer]), low, key, tip))
    if run.best:
        parts.append(text(frame.width - 31, frame.height - 30, "found", "tick", "middle"))
    step = max(1, math.ceil(15 / cell_h))
    parts += [
        text(frame.left - 7, top[layer] + cell_h / 2 + 4, names[layer], "tick", "end")
        for place, layer in enumerate(rows)
        if place % step == 0
    ]
    parts += [_generation_labels(shown, frame, cell_w), frame.y_name("layer")]
    return frame.svg(f"{NAMES[key]} width by layer over {plural(len(history), 'generation')}", *parts)


def _cell(box: Box, ratio: float, skipped: float, low: float, key: str, tip: str) -> Markup:
    x, y, width, height = box
    gap = min(0.6, 0.06 * width)
    tip += "skipped" if skipped >= 1 else f"{percent(ratio, 0)} kept"
    if 0 < skipped < 1:
        tip += f", skipped in {percent(skipped, 0)} of the elites"
    if skipped >= 1 or not math.isfinite(ratio):
        return rect(x, y, width - gap, height - gap, "skip", fill=f"url(#hatch-{key})", tip=tip)
    cell = heat_cell((x, y, width - gap, height - gap), (ratio - low) / (1 - low), key, tip)
    part = (height - gap) * skipped
    over = rect(x, y + height - gap - part, width - gap, part, "skip", fill=f"url(#hatch-{key})", tip=tip)
    return cell + over if part else cell


def _generation_labels(shown: Sequence[GenerationFigures], frame: Frame, cell_w: float) -> Markup:
    named = set(_generation_ticks(shown))
    labels = [
        text(frame.left + cell_w * (i + 0.5), frame.base + 18, str(g.number), "tick", "middle")
        for i, g in enumerate(shown)
        if g.number in named or len(shown) == 1
    ]
    return join(*labels, frame.x_name("generation"))


def perplexity_chart(rows: Sequence[Compared], best: Compared | None) -> Markup:
    """Perplexity of every model of the comparison on one axis; the random architectures share a row."""
    groups: dict[str, list[Compared]] = {}
    for row in rows:
        if row.perplexity is not None and row.perplexity > 0:
            groups.setdefault("random" if model_kind(row.name) == "random" else row.name, []).append(row)
    values = [r.perplexity for group in groups.values() for r in group if r.perplexity is not None]
    low, high = min(values), max(values)
    log = high / low > WIDE
    span = (low / 1.15, high * 1.15) if log else padded(low, high, 0.08, 0.05 * high)
    at, labels = log_ticks(*span) if log else (ticks(*span), None)
    left = 24 + 7.4 * max(len(_short(name)) for name in groups)
    frame = Frame(span, (0, 1), height=62 + 36.0 * len(groups), left=left, right=22, log_x=log)
    parts = [frame.x_axis(f"perplexity{' (log scale)' if log else ''}, lower is better", at, labels)]
    for place, (name, group) in enumerate(groups.items()):
        y = frame.top + 36 * (place + 0.5)
        parts.append(line(frame.left, y, frame.end, y, "grid"))
        parts.append(text(frame.left - 12, y + 4, _short(name), "row-label", "end"))
        shown = [(r, r.perplexity) for r in group if r.perplexity is not None]
        if len(shown) > 1:
            mean = frame.x(float(np.mean([p for _, p in shown])))
            parts.append(line(mean, y - 11, mean, y + 11, "mean-tick"))
        for row, value in shown:
            tip = f"{row.name}: perplexity {decimal(value)}, {short_count(row.params)} parameters"
            parts.append(
                circle(frame.x(value), y, 6.5, f"mark {model_kind(name)}{' winner' if row is best else ''}", tip=tip)
            )
    return frame.svg("Perplexity of base, uniform, random and found models", *parts)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
