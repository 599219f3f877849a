"""The best architecture drawn layer by layer: heads and channels kept, ρ where it was recorded."""

from dataclasses import dataclass

from markupsafe import Markup

from tracenas.formats import MISSING, percent
from tracenas.reporting.charts.dynamics import layer_names, retention
from tracenas.reporting.charts.svg import el, rect, title
from tracenas.reporting.data.run import JournalCandidate, RunData
from tracenas.reporting.labels import NAMES, UNIT_NAMES

__all__ = ["Drawing", "architecture_drawing", "sparks"]

RHO = {"heads": "attention", "cross_heads": "cross_attention", "channels": "mlp"}
DISCRETE = 64  # up to so many units are drawn one by one


@dataclass(frozen=True)
class Cell:
    """One sub-block of one layer; `rho` is its trace correlation, `ids` the units kept, where they are recorded."""

    key: str
    layer: str
    kept: int
    units: int
    rho: float | None
    ids: tuple[int, ...] | None

    @property
    def digits(self) -> int:
        """Room for the widest number of this sub-block's column, in characters."""
        return _digits(self.units)

    @property
    def bar(self) -> Markup:
        """Units one by one while they are few (those kept where they sit in the base, if known), else a bar."""
        noun = UNIT_NAMES[self.key]
        if self.kept == 0:
            tip = f"layer {self.layer}: {noun} skipped"
            shapes = [el("rect", class_="skip", fill="url(#hatch-row)", width="100%", height="100%", rx=2)]
        else:
            share = percent(self.kept / self.units, 0)
            tip = f"layer {self.layer}: {self.kept:,} of {self.units:,} {noun} ({share})"
            shapes = self._units() if self.units <= DISCRETE else self._total()
        return el("svg", title(tip), *shapes, class_="bar", role="img", aria_label=tip)

    def _units(self) -> list[Markup]:
        kept = set(self.ids if self.ids is not None and len(self.ids) == self.kept else range(self.kept))
        step = 100 / self.units
        width = f"{step - min(1.2, step * 0.16):.2f}%"
        styles = [f"fill {self.key}" if i in kept else "track" for i in range(self.units)]
        return [
            el("rect", class_=style, x=f"{i * step:.2f}%", width=width, height="100%", rx=2)
            for i, style in enumerate(styles)
        ]

    def _total(self) -> list[Markup]:
        parts = (("track", "100%"), (f"fill {self.key}", f"{100 * self.kept / self.units:.2f}%"))
        return [el("rect", class_=style, width=width, height="100%", rx=2) for style, width in parts]


@dataclass(frozen=True)
class Row:
    """A layer with the sub-blocks that the base has there."""

    name: str
    stack: str
    skipped: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Drawing:
    """The rows of an architecture; `digits` is the room for the widest number of all, in characters."""

    layers: tuple[Row, ...]
    digits: int
    has_rho: bool


def architecture_drawing(run: RunData, best: JournalCandidate) -> Drawing:
    """What every layer keeps of the base's."""
    rows = []
    for index, (name, layer) in enumerate(zip(layer_names(best.architecture), best.architecture.layers, strict=True)):
        cells = []
        for key in NAMES:
            units = run.base_units.get(key, ())
            if units and units[index]:
                rho, ids = best.rho.get(RHO.get(key, ""), ()), run.kept.get(key, ())
                cell = Cell(
                    key=key,
                    layer=name,
                    kept=dict(layer.kept).get(key, 0),
                    units=units[index],
                    rho=rho[index] if index < len(rho) else None,
                    ids=ids[index] if index < len(ids) else None,
                )
                cells.append(cell)
        rows.append(Row(name, layer.stack, layer.skip, tuple(cells)))
    widest = max(_digits(u) for units in run.base_units.values() for u in units)
    return Drawing(tuple(rows), widest, any(r is not None for values in best.rho.values() for r in values))


def _digits(units: int) -> int:
    return max(8, 2 * len(f"{units:,}") + 1)


def sparks(candidate: JournalCandidate, run: RunData) -> Markup:
    """The architecture as a row of small bars per sub-block, a bar per layer; a skipped one is a small mark."""
    rows = [key for key in NAMES if key in run.base_units]
    return Markup("").join(_spark(list(retention(candidate.architecture, k, run.base_units[k])), k) for k in rows)


def _spark(ratios: list[float], key: str) -> Markup:
    step = 120 / max(len(ratios), 1)
    bars = [
        rect(i * step, 14 - 14 * r, max(step - 1, 0.8), 14 * r, f"fill {key}")
        if r > 0
        else rect(i * step, 12.5, max(step - 1, 0.8), 1.5, "gone")
        for i, r in enumerate(ratios)
        if r == r
    ]
    tip = f"{NAMES[key]}: " + ", ".join(MISSING if r != r else percent(r, 0) for r in ratios)
    return el("svg", title(tip), *bars, viewBox="0 0 120 14", class_="spark", role="img", aria_label=tip)
