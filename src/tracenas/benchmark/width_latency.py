"""Measuring a latency table: whole models whose sub-blocks of one kind are equally wide, in turns with the base.

A single sub-block run again and again would find its weights in the cache, where a model's decoding waits for memory.
So every width is a whole model, and a sub-block's latency the n-th part of the difference from the base; that of the
full width is what n bypassed ones save. Blocks are removed whole: what n of them save beyond their sub-blocks one by
one (in llama.cpp zeros stand for an MLP alone that is gone) is the blocks' overhead, which their sub-blocks share.
Widths between two that were measured are added where the line between these is off by more than `OFF` of the base's
latency.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np

from tracenas.benchmark.latency import quartiles
from tracenas.benchmark.latency_table import PHASES, KindLatency, Point, Slot, kinds
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["CHECKS", "FIRST", "MOST", "Latencies", "TurnTimes", "WidthLatencies", "checked"]

OFF = 0.02
FIRST, MOST = 5, 17
"""Widths of a kind that are measured at first, and in all."""
CHECKS = 12
"""Whole architectures that the sum is compared with."""

Latencies = tuple[Mapping[str, float], ...]
"""Per point and phase, milliseconds."""


@dataclass(frozen=True)
class TurnTimes:
    """Latencies of the base and of others, which took turns.

    Args:
        base: of every turn.
        others: of every turn, per architecture.
    """

    base: tuple[Latencies, ...]
    others: tuple[tuple[Latencies, ...], ...]


Turns = Callable[[Sequence[Architecture]], TurnTimes]
"""Measures architectures in turns with the base."""


class WidthLatencies:
    """What `turns` says of the widths of a space's sub-blocks.

    Args:
        space: the base's; its budget does not matter.
        points: how the model is served.
        turns: measures.
        at_once: architectures that it measures in turns at most; None for any number.
        widths: of a kind that are measured at first, and in all.
    """

    def __init__(
        self,
        space: SearchSpace,
        points: Sequence[Point],
        turns: Turns,
        at_once: int | None = None,
        widths: tuple[int, int] = (FIRST, MOST),
    ) -> None:
        self.space, self.points, self.turns, self._at_once = space, tuple(points), turns, at_once
        self._first, self._most = widths
        self._base: list[Latencies] = []
        self._shares: dict[Architecture, Latencies] = {}

    def measure(self) -> tuple[Latencies, tuple[KindLatency, ...], Latencies]:
        """`outside`, `kinds` and `spread` of a table."""
        found = kinds(self.space.layers)
        widths = {spec: self._widths(slots, spec.choices()) for spec, slots in found.items()}
        gains, block = self._gains(), self.block()
        outside = [dict(point) for point in self.typical()]
        latencies = []
        for spec, slots in found.items():
            part = sum(1 / self._present(index) for index, _ in slots) / len(slots)
            gain = gains[slots[0]]
            full = tuple({p: gain[i][p] + part * block[i][p] for p in PHASES} for i in range(len(self.points)))
            latencies.append(self._kind(spec.units, slots, widths[spec], full))
            for i, p in self._places():
                outside[i][p] -= len(slots) * full[i][p]
        positive = tuple({p: max(0.0, point[p]) for p in PHASES} for point in outside)
        return positive, tuple(latencies), self._spread()

    def block(self) -> Latencies:
        """Milliseconds that a block takes beyond its sub-blocks: of every second one, removed together."""
        removed = range(1, len(self.space.layers), 2)
        if not removed:
            return tuple(dict.fromkeys(PHASES, 0.0) for _ in self.points)
        gains = {slot: gain for slot, gain in self._gains().items() if slot[0] in removed}
        saved = self._gain(list(gains))
        return tuple(
            {p: (len(gains) * saved[i][p] - sum(one[i][p] for one in gains.values())) / len(removed) for p in PHASES}
            for i in range(len(self.points))
        )

    def _kind(self, units: int, slots: Sequence[Slot], widths: Sequence[int], full: Latencies) -> KindLatency:
        """Latencies at every width, from that of the full one."""
        latency = [
            {p: tuple(max(0.0, full[i][p] + self._delta(slots, width, i, p)) for width in widths) for p in PHASES}
            for i in range(len(self.points))
        ]
        return KindLatency(tuple(slots), units, tuple(widths), tuple(latency))

    def _gain(self, slots: Sequence[Slot]) -> Latencies:
        """Milliseconds that one of these saves, when they are bypassed together."""
        (saved,) = self.shares([self._at(slots, 0)])
        base = self.typical()
        return tuple({p: (1.0 - saved[i][p]) * base[i][p] / len(slots) for p in PHASES} for i in range(len(base)))

    def _gains(self) -> dict[Slot, Latencies]:
        """The same of every sub-block, as one of its kind."""
        found = kinds(self.space.layers).values()
        return {slot: gain for slots in found for gain in [self._gain(self._every_second(slots))] for slot in slots}

    def _present(self, index: int) -> int:
        """Sub-blocks of a block that have units."""
        return sum(spec.units > 0 for spec in self.space.layers[index].sub_blocks)

    def _places(self) -> list[tuple[int, str]]:
        return [(i, phase) for i in range(len(self.points)) for phase in PHASES]

    def shares(self, archs: Sequence[Architecture]) -> list[Latencies]:
        """Latencies over the base's, the median over the turns."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self._shares and arch != self.space.base]
        step = self._at_once or max(1, len(new))
        for part in (new[start : start + step] for start in range(0, len(new), step)):
            measured = self.turns(part)
            self._base += measured.base
            for arch, turns in zip(part, measured.others, strict=True):
                self._shares[arch] = tuple(
                    {p: median(t[i][p] / b[i][p] for t, b in zip(turns, measured.base, strict=True)) for p in PHASES}
                    for i in range(len(self.points))
                )
        one: Latencies = tuple(dict.fromkeys(PHASES, 1.0) for _ in self.points)
        return [one if arch == self.space.base else self._shares[arch] for arch in archs]

    def _widths(self, slots: Sequence[Slot], choices: Sequence[int]) -> list[int]:
        """Ascending: some at first, then between two where the line between them is off."""
        places = sorted({round(x) for x in np.linspace(0, len(choices) - 1, min(self._first, len(choices)))})
        self.shares([self._at(slots, choices[place]) for place in places])
        settled: set[tuple[int, int]] = set()
        while len(places) < self._most:
            gaps = [pair for pair in pairwise(places) if pair[1] - pair[0] > 1 and pair not in settled]
            middles = {gap: (gap[0] + gap[1]) // 2 for gap in gaps[: self._most - len(places)]}
            if not middles:
                break
            self.shares([self._at(slots, choices[place]) for place in middles.values()])
            for gap, place in middles.items():
                if not self._off(slots, [choices[p] for p in (gap[0], place, gap[1])]):
                    settled |= {(gap[0], place), (place, gap[1])}
            places = sorted({*places, *middles.values()})
        return [choices[place] for place in places]

    def _off(self, slots: Sequence[Slot], widths: Sequence[int]) -> bool:
        """Whether the middle one of three widths is off the line between the others."""
        low, middle, high = self.shares([self._at(slots, width) for width in widths])
        way = (widths[1] - widths[0]) / (widths[2] - widths[0])
        return any(
            abs(middle[i][p] - low[i][p] - way * (high[i][p] - low[i][p])) > OFF
            for i in range(len(self.points))
            for p in PHASES
        )

    def _delta(self, slots: Sequence[Slot], width: int, point: int, phase: str) -> float:
        """Milliseconds that a sub-block of this width takes more than one of full width."""
        (share,) = self.shares([self._at(slots, width)])
        return (share[point][phase] - 1.0) * self.typical()[point][phase] / len(slots)

    def typical(self) -> Latencies:
        """The base's medians over all turns so far."""
        return tuple({p: median(t[i][p] for t in self._base) for p in PHASES} for i in range(len(self.points)))

    def measured(self, archs: Sequence[Architecture]) -> list[Latencies]:
        """Milliseconds of whole architectures: their shares of the base's medians."""
        shares, base = self.shares(archs), self.typical()
        return [tuple({p: share[i][p] * base[i][p] for p in PHASES} for i in range(len(base))) for share in shares]

    def _spread(self) -> Latencies:
        """Half of the interquartile range over the median."""

        def of(point: int, phase: str) -> float:
            q = quartiles([turn[point][phase] for turn in self._base])
            return (q.q3 - q.q1) / 2 / q.median

        return tuple({p: of(i, p) for p in PHASES} for i in range(len(self.points)))

    def _at(self, slots: Sequence[Slot], width: int) -> Architecture:
        """The base with these sub-blocks at a width."""
        chosen = set(slots)
        counts = [
            [width if (i, s.name) in chosen else s.units for s in layer.sub_blocks]
            for i, layer in enumerate(self.space.layers)
        ]
        return self.space.build(counts)

    def _every_second(self, slots: Sequence[Slot]) -> list[Slot]:
        """Those that are bypassed together: half of them, so that a model is left; of a single one itself."""
        return list(slots[1::2]) or list(slots)


def checked(
    latencies: WidthLatencies,
    predict: Callable[[Architecture, int], Mapping[str, float]],
    archs: Sequence[Architecture],
) -> dict[str, Any]:
    """How far the measured latencies of whole architectures are from the predicted ones, as shares of the former.

    Args:
        predict: what the sum says.
    """
    rows, errors = [], []
    for arch, found in zip(archs, latencies.measured(archs), strict=True):
        for i in range(len(latencies.points)):
            expected = predict(arch, i)
            for phase in PHASES:
                measured = found[i][phase]
                errors.append(abs(measured - expected[phase]) / measured)
                where = {"id": arch.id, "point": i, "phase": phase}
                rows.append({**where, "predicted": expected[phase], "measured": measured, "error": errors[-1]})
    return {"median_error": median(errors), "architectures": rows}
