"""Drawing primitives: a plot frame with axes, ticks, and shapes as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tracenas.reporting.pages.markup import Markup, el, join

__all__ = [
    "WIDE",
    "Frame",
    "circle",
    "hatch",
    "line",
    "log_ticks",
    "polyline",
    "rect",
    "star",
    "text",
    "tick_label",
    "ticks",
    "title",
]

MINUS = "\N{MINUS SIGN}"

WIDE = 8
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start", **more: str) -> Markup:
    """Text at a baseline point; anchor is start, middle or end."""
    return el("text", content, x=float(x), y=float(y), class_=class_ or None, text_anchor=anchor, **more)


def title(content: str) -> Markup:
    """The tooltip of the element that it is put into."""
    return el("title", content)


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    class_: str = "",
    *,
    tip: str | None = None,
    fill: str | None = None,
    style: str | None = None,
    radius: float = 0,
) -> Markup:
    """A rectangle; `tip` becomes its tooltip."""
    return el(
        "rect",
        title(tip) if tip else None,
        x=float(x),
        y=float(y),
        width=float(max(width, 0)),
        height=float(max(height, 0)),
        class_=class_ or None,
        fill=fill,
        style=style,
        rx=float(radius) if radius else None,
    )


def circle(x: float, y: float, radius: float, class_: str = "", *, tip: str | None = None) -> Markup:
    """A disc; `tip` becomes its tooltip."""
    return el(
        "circle",
        title(tip) if tip else None,
        cx=float(x),
        cy=float(y),
        r=float(radius),
        class_=class_ or None,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str = "") -> Markup:
    """A straight line."""
    return el("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_ or None)


def polyline(points: Sequence[tuple[float, float]], class_: str = "", *, closed: bool = False) -> Markup:
    """A line through points, or a closed area."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return el("polygon" if closed else "polyline", points=path, class_=class_ or None)


def star(x: float, y: float, radius: float, class_: str = "", *, tip: str | None = None) -> Markup:
    """A five-pointed star."""
    corners = []
    for i in range(10):
        r, angle = (radius if i % 2 == 0 else radius * 0.45), math.pi * (i / 5 - 0.5)
        corners.append(f"{x + r * math.cos(angle):.1f},{y + r * math.sin(angle):.1f}")
    return el("polygon", title(tip) if tip else None, points=" ".join(corners), class_=class_ or None)


def hatch(identifier: str) -> Markup:
    """A pattern of diagonal lines, for `fill="url(#identifier)"`: what was skipped."""
    stripes = el("line", x1=0, y1=0, x2=0, y2=5, class_="hatch-line")
    ground = el("rect", width=5, height=5, class_="hatch-ground")
    return el(
        "pattern",
        ground,
        stripes,
        id=identifier,
        width=5,
        height=5,
        patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten; whole ones if asked) within [low, high]."""
    if high <= low:
        return [low]
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * f for f in factors if power * f >= rough * 0.999)
    if whole:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float, values: Sequence[float]) -> str:
    """A tick with as many decimals as the steps between `values` need."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value) or 1.0
    largest = max(map(abs, values), default=0.0)
    if largest and (largest >= 1e6 or largest < 1e-3):
        return f"{value:.2g}".replace("-", MINUS)
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < step * 1e-6), 6)
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Powers of ten, with 2 and 5 times them over fewer than three decades, and their labels."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    at = [10.0**p * s for p in powers for s in steps if low <= 10.0**p * s <= high]
    return at, [f"{v:,.0f}" if v < 1e5 else f"{v:.0e}".replace("e+0", "e") for v in at]


def _share(value: float, whole: tuple[float, float], *, log: bool) -> float:
    """Where a value lies in a range, from 0 to 1."""
    low, high = whole
    if log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return 0.5 if high == low else (value - low) / (high - low)


@dataclass(frozen=True)
class Frame:
    """A plot area with linear or logarithmic axes; sizes in SVG user units.

    `x_range` and `y_range` are the data's; `left`, `right`, `top` and `bottom` the margins around the area.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    width: float = 480
    height: float = 290
    left: float = 56
    right: float = 14
    top: float = 14
    bottom: float = 48
    log_x: bool = False
    log_y: bool = False

    def x(self, value: float) -> float:
        """Data to horizontal position."""
        share = _share(value, self.x_range, log=self.log_x)
        return self.left + share * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        """Data to vertical position (upwards)."""
        share = _share(value, self.y_range, log=self.log_y)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def x_axis(self, label: str, at: Sequence[float], labels: Sequence[str] | None = None) -> Markup:
        """Tick labels below the area and the axis' name."""
        base = self.height - self.bottom
        names = labels or [tick_label(v, at) for v in at]
        marks = [
            join(
                line(self.x(v), base, self.x(v), base + 4, "axis"),
                text(self.x(v), base + 18, n, "tick", "middle"),
            )
            for v, n in zip(at, names, strict=True)
        ]
        middle = (self.left + self.width - self.right) / 2
        return join(*marks, text(middle, self.height - 8, label, "axis-label", "middle"))

    def y_axis(self, label: str, at: Sequence[float], labels: Sequence[str] | None = None) -> Markup:
        """Grid lines, tick labels left of the area and the axis' name, turned."""
        names = labels or [tick_label(v, at) for v in at]
        marks = [
            join(
                line(self.left, self.y(v), self.width - self.right, self.y(v), "grid"),
                text(self.left - 8, self.y(v) + 4, n, "tick", "end"),
            )
            for v, n in zip(at, names, strict=True)
        ]
        return join(*marks, self.y_name(label))

    def y_name(self, label: str) -> Markup:
        """The vertical axis' name, turned, at the left edge."""
        middle = (self.top + self.height - self.bottom) / 2
        turned = f"rotate(-90 13 {middle:.1f})"
        return text(13, middle, label, "axis-label", "middle", transform=turned)

    def svg(self, description: str, *parts: Markup) -> Markup:
        """The finished picture; `description` is what a screen reader says."""
        return el(
            "svg",
            el("desc", description),
            *parts,
            viewBox=f"0 0 {self.width:g} {self.height:g}",
            role="img",
            aria_label=description,
            class_="chart",
        )
