"""Latencies of sub-blocks by width, and what they say of a whole architecture. No torch.

    T(architecture) = T_outside + Σ over sub-blocks t(kind, width),    t(kind, 0) = 0,

for a prefill of so many tokens and for one token that is decoded behind so many, at one number of sequences. A kind is
all sub-blocks of equal size; between the widths that were measured a latency is interpolated.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.rundir import read_json
from tracenas.space.architecture import Architecture
from tracenas.space.costs import sub_blocks
from tracenas.space.sub_block import LayerSpec
from tracenas.strategies.score import is_number

__all__ = ["PHASES", "KindLatency", "LatencyTable", "Point", "kinds"]

FORMAT = 1
PHASES = ("prefill_ms", "decode_ms")

Slot = tuple[int, str]
"""Block and name of a sub-block."""


@dataclass(frozen=True, order=True)
class Point:
    """How a model is served.

    Args:
        batch: sequences at once.
        prompt: tokens that a prefill reads.
        context: tokens that a decoded one attends to.
    """

    batch: int
    prompt: int
    context: int


@dataclass(frozen=True)
class KindLatency:
    """Sub-blocks of equal size.

    Args:
        slots: which they are.
        units: of each.
        widths: that were measured, ascending, without 0.
        latency: per point (in the table's order) and phase, milliseconds at every width.
    """

    slots: tuple[Slot, ...]
    units: int
    widths: tuple[int, ...]
    latency: tuple[Mapping[str, tuple[float, ...]], ...]

    def at(self, kept: int, point: int, phase: str) -> float:
        """Milliseconds at a width."""
        if not kept:
            return 0.0
        values = self.latency[point][phase]
        right = min(max(1, bisect_left(self.widths, kept)), len(self.widths) - 1)
        if len(self.widths) == 1:
            return values[0]
        (low, high), (a, b) = self.widths[right - 1 : right + 1], values[right - 1 : right + 1]
        return a + (b - a) * (kept - low) / (high - low)


@dataclass(frozen=True)
class LatencyTable:
    """What a runtime takes.

    Args:
        backend: that was measured.
        machine: on which.
        model: name and parameters of the base.
        points: how it is served.
        outside: per point and phase, milliseconds of what no architecture removes.
        kinds: the sub-blocks.
        spread: per point and phase, half of the interquartile range of the base's latency over its median.
        checked: how far whole architectures were from the sum.
        block: per point and phase, milliseconds of a block beyond its sub-blocks one by one. These share them equally,
            so `kinds` holds them already.
    """

    backend: str
    machine: Mapping[str, Any]
    model: Mapping[str, Any]
    points: tuple[Point, ...]
    outside: tuple[Mapping[str, float], ...]
    kinds: tuple[KindLatency, ...]
    spread: tuple[Mapping[str, float], ...]
    checked: Mapping[str, Any]
    block: tuple[Mapping[str, float], ...] = ()

    def predict(self, layers: Sequence[LayerSpec], arch: Architecture, point: int = 0) -> dict[str, float]:
        """Milliseconds of an architecture at a point, by phase."""
        found = {slot: kind for kind in self.kinds for slot in kind.slots}
        total = dict(self.outside[point])
        for index, spec, kept in sub_blocks(layers, arch):
            if kept:
                for phase in PHASES:
                    total[phase] += found[index, spec.name].at(kept, point, phase)
        return total

    def to_json(self) -> dict[str, Any]:
        """The file's object."""
        plain = asdict(self)
        for kind in plain["kinds"]:
            kind["slots"] = [list(slot) for slot in kind["slots"]]
        return {"format": FORMAT, **plain}

    @classmethod
    def read(cls, path: Path) -> "LatencyTable":
        """Read a file of `tracenas measure`.

        Raises:
            UserError: if it is none.
        """
        data = read_json(path)
        try:
            if data["format"] != FORMAT:
                raise UserError(f"{path}: format {data['format']}; this version reads {FORMAT}")
            points = tuple(Point(**point) for point in data["points"])
            table = cls(
                data["backend"],
                data["machine"],
                data["model"],
                points,
                tuple(_numbers(one) for one in data["outside"]),
                tuple(_kind(one) for one in data["kinds"]),
                tuple(_numbers(one) for one in data["spread"]),
                data["checked"],
                tuple(_numbers(one) for one in data.get("block", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a latency table of tracenas measure ({type(error).__name__})") from error
        if not points or any(len(k.latency) != len(points) for k in table.kinds) or len(table.outside) != len(points):
            raise UserError(f"{path}: not a latency table of tracenas measure (points and latencies differ in number)")
        return table


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    if set(data) != set(PHASES) or not all(is_number(value) for value in data.values()):
        raise ValueError("expected numbers")
    return {name: float(data[name]) for name in PHASES}


def _kind(data: Mapping[str, Any]) -> KindLatency:
    widths = tuple(int(w) for w in data["widths"])
    latency = tuple({p: tuple(float(v) for v in one[p]) for p in PHASES} for one in data["latency"])
    whole = all(len(values) == len(widths) for one in latency for values in one.values())
    if not widths or not whole or any(a >= b for a, b in pairwise(widths)):
        raise ValueError("expected a latency per width")
    return KindLatency(tuple((int(i), str(n)) for i, n in data["slots"]), int(data["units"]), widths, latency)


def kinds(layers: Sequence[LayerSpec]) -> dict[Any, list[Slot]]:
    """Sub-blocks that have units by what they are: those of equal size are measured together."""
    found: dict[Any, list[Slot]] = {}
    for index, layer in enumerate(layers):
        for spec in layer.sub_blocks:
            if spec.units:
                found.setdefault(spec, []).append((index, spec.name))
    return found
