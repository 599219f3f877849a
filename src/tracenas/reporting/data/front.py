"""What a search of all sizes left in a run directory: its front, what every candidate costs, and curves beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tracenas.reporting.data.reading import Fields, mapping, read_object

__all__ = ["CurvePoint", "FrontData", "Member"]

Costs = Mapping[str, float]


@dataclass(frozen=True)
class Member:
    """What no other candidate costs as little as and scores as well."""

    id: str
    loss: float | None
    score: float | None
    costs: Costs


@dataclass(frozen=True)
class CurvePoint:
    """An architecture of a method without search: its predicted loss, and what the search measured of it, if it did."""

    loss: float
    measured: float | None
    costs: Costs


@dataclass(frozen=True)
class FrontData:
    """The front of a run.

    Args:
        names: its costs, the first of which bounds it.
        members: cheapest first.
        hypervolume: after every generation.
        base: what the base costs; `base_loss`: its loss, nats per token.
        candidates: what every candidate costs, by id.
        curves: by method, in the order of sizes.
    """

    names: tuple[str, ...]
    members: tuple[Member, ...]
    hypervolume: tuple[float, ...]
    base: Costs
    base_loss: float | None
    candidates: Mapping[str, Costs]
    curves: Mapping[str, tuple[CurvePoint, ...]]

    @classmethod
    def read(cls, run: Path, summary: Mapping[str, object]) -> "FrontData | None":
        """Of a run and its summary, as far as it has come; None where no front was searched, or nothing is known yet.

        Raises:
            UserError: for files that hold something else.
        """
        file = run / "front.json"
        front = Fields(summary, str(run / "summary.json")).fields("front")
        if not front.values and not file.is_file():
            return None
        pictured = Fields(read_object(file), str(file))
        if not front.values:  # of a run that goes on
            front = pictured
        candidates, curves = pictured.fields("candidates"), pictured.fields("curves")
        return cls(
            tuple(str(name) for name in front.items("costs")),
            tuple(_member(Fields(mapping(one, front.where), front.where)) for one in front.items("members")),
            tuple(value for value in front.numbers("hypervolume") if value is not None),
            _costs(pictured.fields("base").fields("costs")),
            pictured.fields("base").number("loss"),
            {name: _costs(candidates.fields(name)) for name in candidates.values},
            {name: _curve(curves, name) for name in curves.values},
        )


def _costs(fields: Fields) -> Costs:
    found = {name: fields.number(name) for name in fields.values}
    return {name: value for name, value in found.items() if value is not None}


def _member(fields: Fields) -> Member:
    return Member(
        fields.text("id") or "", fields.number("loss"), fields.number("score"), _costs(fields.fields("costs"))
    )


def _curve(curves: Fields, name: str) -> tuple[CurvePoint, ...]:
    rows = [Fields(mapping(one, curves.place(name)), curves.place(name)) for one in curves.items(name)]
    points = ((row.number("loss"), row.number("measured"), _costs(row.fields("costs"))) for row in rows)
    return tuple(CurvePoint(loss, measured, costs) for loss, measured, costs in points if loss is not None)
