"""Cells of heat maps: a share between 0 and 1 as a colour of the sub-block's scale."""

from markupsafe import Markup

from tracenas.reporting.charts.svg import el, rect

__all__ = ["heat_cell", "heat_scale"]

Box = tuple[float, float, float, float]
"""x, y, width, height."""

LIGHT = {"channels": ((253, 240, 226), (176, 74, 3))}
LIGHT_OTHER = ((232, 240, 252), (20, 73, 160))
STEPS = 20  # colours of a heat map's scale


def heat_cell(box: Box, share: float, key: str, tip: str | None = None) -> Markup:
    """A rectangle in the colour of `share`, from 0 to 1, on the scale of the sub-block `key`."""
    return rect(*box, f"heat {key}", fill=_colour(share, key), style=f"--v:{100 * share:.0f}%", tip=tip)


def heat_scale(key: str) -> Markup:
    """The colours of a sub-block's heat map, from share 0 to 1."""
    cells = [heat_cell((i * 6, 2, 6.3, 12), i / (STEPS - 1), key) for i in range(STEPS)]
    return el("svg", *cells, viewBox="0 0 120 16", class_="scale", aria_hidden="true")


def _colour(share: float, key: str) -> str:
    """The cell's colour for browsers without `color-mix`, which the style sheet uses."""
    low, high = LIGHT.get(key, LIGHT_OTHER)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))
