"""The found architecture drawn layer by layer: heads and channels kept, ρ where it was recorded."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracenas.reporting.charts.dynamics import layer_names
from tracenas.reporting.charts.run import NAMES
from tracenas.reporting.charts.svg import hatch, title
from tracenas.reporting.data.run import Candidate, RunData
from tracenas.reporting.formats import MINUS, percent
from tracenas.reporting.pages.markup import Markup, el, join

__all__ = ["RHO", "UNIT_NAMES", "architecture_drawing"]

RHO = {"heads": "attention", "cross_heads": "cross_attention", "channels": "mlp"}
UNIT_NAMES = {
    "heads": "attention heads",
    "kv_heads": "KV groups",
    "cross_heads": "cross-attention heads",
    "channels": "MLP channels",
}
DISCRETE = 64  # up to so many units are drawn one by one


@dataclass(frozen=True)
class _Cell:
    """One sub-block of one layer."""

    key: str
    kept: int
    units: int
    rho: float | None
    ids: tuple[int, ...] | None


def architecture_drawing(run: RunData, best: Candidate) -> Markup:
    """A row per layer with a bar per sub-block, hatched where skipped; one stack after the other."""
    keys = [key for key in NAMES if key in run.base_units]
    names = layer_names(best.architecture)
    has_rho = any(r is not None for values in best.rho.values() for r in values)
    blocks: list[Markup] = []
    stack: str | None = None
    for index, layer in enumerate(best.architecture.layers):
        cells = [_cell(run, best, key, index) for key in keys]
        if layer.stack != stack:
            if layer.stack:
                blocks.append(el("h3", layer.stack.capitalize(), class_="stack"))
            blocks.append(_header([cell for cell in cells if cell.units], has_rho))
            stack = layer.stack
        blocks.append(_row(names[index], [cell for cell in cells if cell.units], has_rho, layer.skip))
    defs = el("svg", el("defs", hatch("hatch-row")), width=0, height=0, class_="defs", aria_hidden="true")
    widest = max(_digits(u) for units in run.base_units.values() for u in units)
    label = "Layers of the found model"
    rows = el("div", *blocks, class_="layers", style=f"--m:{widest}ch", role="table", aria_label=label)
    return join(defs, rows)


def _cell(run: RunData, best: Candidate, key: str, index: int) -> _Cell:
    layer = best.architecture.layers[index]
    rho = best.rho.get(RHO.get(key, ""), ())
    ids = run.kept.get(key, ())
    return _Cell(
        key=key,
        kept=dict(layer.kept).get(key, 0),
        units=run.base_units[key][index],
        rho=rho[index] if index < len(rho) else None,
        ids=ids[index] if index < len(ids) else None,
    )


def _number_width(cell: _Cell) -> str:
    """Room for the widest number of this sub-block's column, as a CSS variable."""
    return f"--n:{_digits(cell.units)}ch"


def _digits(units: int) -> int:
    return max(8, 2 * len(f"{units:,}") + 1)


def _header(cells: Sequence[_Cell], has_rho: bool) -> Markup:
    parts = []
    for cell in cells:
        name = UNIT_NAMES[cell.key]
        parts.append(
            el(
                "div",
                el("span", name[0].upper() + name[1:], class_="unit-name"),
                el("span", "kept", class_="num"),
                el("span", "ρ", class_="rho") if has_rho else None,
                class_="unit",
                style=_number_width(cell),
                role="columnheader",
            )
        )
    return el("div", el("span", "Layer", class_="no", role="columnheader"), *parts, class_="layer head", role="row")


def _row(name: str, cells: Sequence[_Cell], has_rho: bool, skipped: bool) -> Markup:
    parts = [_unit(cell, has_rho, name) for cell in cells]
    number = el("span", name, class_="no", role="rowheader")
    return el("div", number, *parts, class_="layer skipped" if skipped else "layer", role="row")


def _unit(cell: _Cell, has_rho: bool, name: str) -> Markup:
    ratio = cell.kept / cell.units
    what = f"layer {name}: " + (
        f"{UNIT_NAMES[cell.key]} skipped"
        if cell.kept == 0
        else f"{cell.kept:,} of {cell.units:,} {UNIT_NAMES[cell.key]} ({percent(ratio, 0)})"
    )
    if cell.kept == 0:
        number = el("span", "skipped", class_="num off")
    else:
        number = el("span", f"{cell.kept:,}", el("i", f"/{cell.units:,}"), class_="num")
    rho = None
    if has_rho:
        rho = el("span", _rho_text(cell.rho), _rho_bar(cell.rho, cell.key), class_="rho")
    return el("div", _bar(cell, what), number, rho, class_="unit", style=_number_width(cell), role="cell")


def _rho_text(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.2f}".replace("-", MINUS)


def _rho_bar(value: float | None, key: str) -> Markup | None:
    """A short bar from 0 to ρ; negative values are told by their number only."""
    if value is None:
        return None
    width = f"{100 * min(max(value, 0.0), 1.0):.0f}%"
    return el(
        "svg",
        el("rect", class_="track", width="100%", height="100%", rx=1.5),
        el("rect", class_=f"fill {key}", width=width, height="100%", rx=1.5),
        class_="rho-bar",
        aria_hidden="true",
    )


def _bar(cell: _Cell, tip: str) -> Markup:
    """Units one by one while they are few (those kept where they sit in the base, if known), else a bar."""
    shapes: list[Markup] = []
    if cell.kept == 0:
        shapes.append(el("rect", class_="skip", fill="url(#hatch-row)", width="100%", height="100%", rx=2))
    elif cell.units <= DISCRETE:
        kept = set(cell.ids if cell.ids is not None and len(cell.ids) == cell.kept else range(cell.kept))
        step = 100 / cell.units
        gap = min(1.2, step * 0.16)
        for i in range(cell.units):
            class_ = f"fill {cell.key}" if i in kept else "track"
            x, width = f"{i * step:.2f}%", f"{step - gap:.2f}%"
            shapes.append(el("rect", class_=class_, x=x, width=width, height="100%", rx=2))
    else:
        width = f"{100 * cell.kept / cell.units:.2f}%"
        shapes.append(el("rect", class_="track", width="100%", height="100%", rx=2))
        shapes.append(el("rect", class_=f"fill {cell.key}", width=width, height="100%", rx=2))
    return el("svg", title(tip), *shapes, class_="bar", role="img", aria_label=tip)
