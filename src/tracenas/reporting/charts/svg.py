"""Drawing primitives: a plot frame with axes, ticks, and shapes as inline SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tracenas.formats import MINUS

__all__ = [
    "WIDE",
    "Frame",
    "circle",
    "el",
    "hatch",
    "join",
    "label_margin",
    "left_margin",
    "line",
    "log_ticks",
    "padded",
    "polygon",
    "rect",
    "star",
    "text",
    "tick_label",
    "ticks",
    "title",
]

WIDE = 8
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""

Attribute = str | float | None


def el(name: str, /, *children: str | None, **attributes: Attribute) -> Markup:
    """One element. Children that are not `Markup` are escaped; None (child or attribute) is left out.

    Attribute names lose a trailing underscore and get hyphens: `class_="a"`, `stroke_width=2`. Floats are
    rounded to 2 decimals.
    """
    head = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    return Markup(f"<{name}{head}>{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Children one after the other, escaped where they are plain text."""
    return Markup("").join(child for child in children if child is not None)


def _attribute(key: str, value: str | float) -> str:
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
        value = "0" if value == "-0" else value
    return f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'


def title(content: str | None) -> Markup | None:
    """The tooltip of the element that it is put into; None without one."""
    return el("title", content) if content else None


def text(x: float, y: float, content: str, class_: str | None = None, anchor: str = "start", **more: str) -> Markup:
    """Text at a baseline point; anchor is start, middle or end."""
    return el("text", content, x=x, y=y, class_=class_, text_anchor=anchor, **more)


def rect(
    x: float, y: float, width: float, height: float, class_: str, *, tip: str | None = None, **more: Attribute
) -> Markup:
    """A rectangle; `tip` becomes its tooltip."""
    return el("rect", title(tip), x=x, y=y, width=max(width, 0), height=max(height, 0), class_=class_, **more)


def circle(x: float, y: float, radius: float, class_: str, *, tip: str | None = None) -> Markup:
    """A disc; `tip` becomes its tooltip."""
    return el("circle", title(tip), cx=x, cy=y, r=radius, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polygon(points: Iterable[tuple[float, float]], class_: str, *, tip: str | None = None) -> Markup:
    """A closed area; `tip` becomes its tooltip."""
    return el("polygon", title(tip), points=_path(points), class_=class_)


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def star(x: float, y: float, radius: float, *, tip: str) -> Markup:
    """A five-pointed star with a tooltip."""
    turns = [(radius if i % 2 == 0 else radius * 0.45, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return polygon([(x + r * math.cos(angle), y + r * math.sin(angle)) for r, angle in turns], "star", tip=tip)


def hatch(identifier: str) -> Markup:
    """A pattern of diagonal lines, for `fill="url(#identifier)"`: what was skipped."""
    stripes = el("line", x1=0, y1=0, x2=0, y2=5, class_="hatch-line")
    ground = el("rect", width=5, height=5, class_="hatch-ground")
    turned = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    return el("pattern", ground, stripes, id=identifier, width=5, height=5, **turned)


def padded(low: float, high: float, share: float = 0.06, least: float = 1.0) -> tuple[float, float]:
    """A range with a margin of `share` of it on both sides; of `least` where it is a single value."""
    margin = share * (high - low) or least
    return low - margin, high + margin


def ticks(low: float, high: float, about: int = 5, *, integer: bool = False) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten; integers on request) within [low, high]; two at least."""
    if high <= low:
        return [low]
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if integer else (1, 2, 2.5, 5, 10)
    step = next(power * f for f in factors if power * f >= rough * 0.999)
    if integer:
        step = max(1.0, round(step))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    if last <= first and not integer:  # one would not say how long anything is
        return ticks(low, high, about + 1)
    return [i * step for i in range(first, last + 1)]


def tick_label(value: float, values: Sequence[float]) -> str:
    """A tick with as many decimals as the steps between `values` need."""
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(value) or 1.0
    largest = max(map(abs, values), default=0.0)
    if largest and (largest >= 1e6 or largest < 1e-3):
        return f"{value:.2g}".replace("-", MINUS)
    decimals = next((d for d in range(7) if abs(round(step, d) - step) < step * 1e-6), 6)
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def left_margin(values: Sequence[float]) -> float:
    """Room left of a plot for the vertical axis' name and its tick labels, also at a narrow screen's larger type."""
    return label_margin([tick_label(value, values) for value in values])


def label_margin(labels: Sequence[str]) -> float:
    """As `left_margin`, for labels of their own."""
    return 32 + 8.2 * max(map(len, labels))


def log_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Powers of ten, with 2 and 5 times them over fewer than three decades, and their labels."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
    at = [10.0**p * s for p in powers for s in steps if low <= 10.0**p * s <= high]
    return at, [f"{v:,.0f}" if v < 1e5 else f"{v:.0e}".replace("e+0", "e") for v in at]


def _share(value: float, span: tuple[float, float], *, log: bool) -> float:
    """Where a value lies in a range, from 0 to 1."""
    low, high = span
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

    @property
    def base(self) -> float:
        """Vertical position of the area's lower edge."""
        return self.height - self.bottom

    @property
    def end(self) -> float:
        """Horizontal position of the area's right edge."""
        return self.width - self.right

    def x(self, value: float) -> float:
        """Data to horizontal position."""
        return self.left + _share(value, self.x_range, log=self.log_x) * (self.end - self.left)

    def y(self, value: float) -> float:
        """Data to vertical position (upwards)."""
        return self.base - _share(value, self.y_range, log=self.log_y) * (self.base - self.top)

    def x_axis(self, label: str, at: Sequence[float], labels: Sequence[str] | None = None) -> Markup:
        """Tick labels below the area and the axis' name."""
        names = labels or [tick_label(v, at) for v in at]
        marks = [
            line(self.x(v), self.base, self.x(v), self.base + 4, "axis")
            + text(self.x(v), self.base + 18, name, "tick", "middle")
            for v, name in zip(at, names, strict=True)
        ]
        return join(*marks, self.x_name(label))

    def x_name(self, label: str) -> Markup:
        """The horizontal axis' name, at the lower edge."""
        return text((self.left + self.end) / 2, self.height - 8, label, "axis-label", "middle")

    def y_axis(self, label: str, at: Sequence[float], labels: Sequence[str] | None = None) -> Markup:
        """Grid lines, tick labels left of the area and the axis' name, turned."""
        names = labels or [tick_label(v, at) for v in at]
        marks = [
            line(self.left, self.y(v), self.end, self.y(v), "grid")
            + text(self.left - 8, self.y(v) + 4, name, "tick", "end")
            for v, name in zip(at, names, strict=True)
        ]
        return join(*marks, self.y_name(label))

    def y_name(self, label: str) -> Markup:
        """The vertical axis' name, turned, at the left edge."""
        middle = (self.top + self.base) / 2
        return text(13, middle, label, "axis-label", "middle", transform=f"rotate(-90 13 {middle:.1f})")

    def polyline(self, points: Iterable[tuple[float, float]], class_: str) -> Markup:
        """A line through points of the data."""
        return el("polyline", points=_path((self.x(x), self.y(y)) for x, y in points), class_=class_)

    def points(self, points: Iterable[tuple[float, float, str]], radius: float, class_: str) -> list[Markup]:
        """A disc at every (x, y, tooltip) of the data."""
        return [circle(self.x(x), self.y(y), radius, class_, tip=tip) for x, y, tip in points]

    def svg(self, description: str, *parts: Markup) -> Markup:
        """The finished picture; `description` is what a screen reader says."""
        box = f"0 0 {self.width:g} {self.height:g}"
        desc = el("desc", description)
        return el("svg", desc, *parts, viewBox=box, role="img", aria_label=description, class_="chart")
