"""A front as pictures: every cost against the loss, and the hypervolume as it grew."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tracenas.formats import decimal, perplexity, plural
from tracenas.reporting.charts.named import NamedChart
from tracenas.reporting.charts.svg import Frame, circle, left_margin, padded, star, text, ticks
from tracenas.reporting.data.front import CurvePoint, FrontData
from tracenas.reporting.data.run import RunData
from tracenas.reporting.labels import cost_amount, cost_axis, start_label
from tracenas.strategies.dominance import non_dominated

__all__ = ["front_pictures", "hypervolume_chart", "knee"]

_STYLES = {"fisher": "found", "mlp": "other", "uniform": "uniform"}


@dataclass(frozen=True)
class _Placed:
    """A candidate: what it costs in the picture's unit, its loss, and what is said of it."""

    cost: float
    loss: float
    tip: str


def front_pictures(run: RunData, front: FrontData) -> Iterator[NamedChart]:
    """Of every cost that all candidates are known in, in the order in which front.json has them."""
    losses = {c.id: c.loss for c in run.candidates if c.loss is not None and c.id in front.candidates}
    for name in front.base:
        marks = {
            one: _Placed(costs[name], losses[one], _tip(one, losses[one], costs))
            for one, costs in front.candidates.items()
            if one in losses and name in costs
        }
        if len(marks) > 1 or (front.curves and len(front.candidates) < 2):
            yield _picture(front, name, marks)


def _picture(front: FrontData, name: str, marks: Mapping[str, _Placed]) -> NamedChart:
    unit, scale = cost_axis(name, front.base[name])
    best = [marks[one] for one in non_dominated({one: (mark.cost, -mark.loss) for one, mark in marks.items()})]
    lines = {method: _line(points, name) for method, points in front.curves.items()}
    span = padded(*_losses(front, best), 0.08, 0.01)
    shown = [cost for line in lines.values() for cost, loss, _ in line if loss <= span[1]]
    sizes = [scale * cost for cost in (*(mark.cost for mark in marks.values()), *shown)]
    frame = Frame(padded(min(sizes), max(sizes), 0.05, 0.5), span, left=left_margin(ticks(*span)), height=310)
    parts = [frame.y_axis("loss, nats per token", ticks(*span)), frame.x_axis(unit, ticks(*frame.x_range))]
    if (base := front.base_loss) is not None:
        parts.append(frame.polyline([(x, base) for x in frame.x_range], "base-line"))
        parts.append(text(frame.left + 4, frame.y(base) - 6, f"base {decimal(base)}", "tick"))
    parts += [_dot(frame, scale, mark) for mark in marks.values()]
    for method, line in lines.items():
        inside = [(scale * cost, loss) for cost, loss, _ in line if loss <= span[1]]
        parts.append(frame.polyline(inside, f"line dashed {_STYLES.get(method, 'other')}"))
        parts += [_measured(frame, scale, method, one) for one in line if one[2] is not None and one[2] <= span[1]]
    parts.append(frame.polyline([(scale * mark.cost, mark.loss) for mark in best], "best-line"))
    parts += frame.points([(scale * mark.cost, mark.loss, mark.tip) for mark in best], 3.4, "point found")
    if (bend := knee([(mark.cost, mark.loss) for mark in best])) is not None:
        mark = best[bend]
        parts.append(star(frame.x(scale * mark.cost), frame.y(mark.loss), 9, tip=f"knee, {mark.tip}"))
    above = sum(mark.loss > span[1] for mark in marks.values())
    note = "Loss on the calibration text, as scored. Dashed: predicted by the sensitivity table." if lines else ""
    return NamedChart(
        f"{unit.partition(',')[0].capitalize()} against loss",
        f"{note} {plural(above, 'candidate')} above the chart." if above else note,
        frame.svg(f"{unit} and loss of {plural(len(marks), 'candidate')}; the front is a line", *parts),
        [
            *([("best", "front"), ("star", "knee"), ("dot", "candidate")] if marks else []),
            *((f"dashed {_STYLES.get(method, 'other')}", _method(method)) for method in lines),
            *([("base", "base")] if base is not None else []),
        ],
    )


def _line(points: Sequence[CurvePoint], name: str) -> list[tuple[float, float, float | None]]:
    """A method's cost, predicted loss and measured one, the best under every limit of this cost."""
    known = {n: (point.costs[name], -point.loss) for n, point in enumerate(points) if name in point.costs}
    return [(points[n].costs[name], points[n].loss, points[n].measured) for n in non_dominated(known)]


def _losses(front: FrontData, best: Sequence[_Placed]) -> tuple[float, float]:
    """From the base or the best to the worst of the front; before there is one, of what the table predicts of it."""
    values = [mark.loss for mark in best] or [point.loss for point in next(iter(front.curves.values()))]
    values += [front.base_loss] if front.base_loss is not None else []
    return min(values), max(values) + 0.25 * (max(values) - min(values))


def _dot(frame: Frame, scale: float, mark: _Placed) -> Markup:
    high = frame.y_range[1]
    style = "dot low" if mark.loss > high else "dot"
    return circle(frame.x(scale * mark.cost), frame.y(min(mark.loss, high)), 2.6, style, tip=mark.tip)


def _measured(frame: Frame, scale: float, method: str, point: tuple[float, float, float | None]) -> Markup:
    cost, predicted, measured = point
    assert measured is not None
    tip = f"{_method(method)}: loss {decimal(measured)}, predicted {decimal(predicted)}"
    return circle(frame.x(scale * cost), frame.y(measured), 5, f"mark {_STYLES.get(method, 'other')}", tip=tip)


def _method(name: str) -> str:
    return start_label(name).removeprefix("the ")


def _tip(name: str, loss: float, costs: Mapping[str, float]) -> str:
    spent = ", ".join(cost_amount(cost, value) for cost, value in costs.items())
    return f"{name}: loss {decimal(loss)}, perplexity {perplexity(loss)}, {spent}"


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Place of the point that lies farthest below the line from the first to the last; None of fewer than three.

    Both axes are counted in what the ends differ by.
    """
    if len(points) < 3:
        return None
    (x0, y0), (x1, y1) = points[0], points[-1]
    below = [(1 - (x - x0) / (x1 - x0)) - (y - y1) / (y0 - y1) for x, y in points]
    return max(range(len(points)), key=below.__getitem__) if max(below) > 0 else None


def hypervolume_chart(front: FrontData) -> Markup:
    """The hypervolume after every generation."""
    values = front.hypervolume
    span = padded(min(values), max(values), 0.08, 0.05 * max(values) or 1.0)
    levels = ticks(*span)
    frame = Frame((-0.4, max(len(values) - 0.6, 0.4)), span, left=left_margin(levels), height=310)
    points = list(enumerate(values))
    parts = [
        frame.y_axis("hypervolume", levels),
        frame.x_axis("generation", ticks(0, max(len(values) - 1, 1), 6, integer=True)),
        frame.polyline(points, "best-line"),
    ]
    tips = [(x, y, f"generation {x}: hypervolume {decimal(y)}") for x, y in points]
    return frame.svg("Hypervolume after every generation", *parts, *frame.points(tips, 3.4, "point found"))
