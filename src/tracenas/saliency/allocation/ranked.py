"""What an allocation is given, what it gives back, and the ranks of units in a common pool."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from tracenas.families import Key
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["Allocated", "Allocation", "Ranked", "Scores", "UnitPool"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranked:
    """A base model's units with their saliencies.

    Args:
        space: with the budget.
        saliency: float64 [units] per sub-block, by base id.
        groups: in how many equal, consecutive ranges a sub-block's units are pruned equally (KV groups, experts).
        importance: of every sub-block.
    """

    space: SearchSpace
    saliency: Mapping[Key, Scores]
    groups: Mapping[Key, int]
    importance: Mapping[Key, float]

    def slots(self) -> list[tuple[int, int, SubBlockSpec]]:
        """(layer, place in the layer, sub-block) of everything that has units."""
        return [
            (i, j, s) for i, layer in enumerate(self.space.layers) for j, s in enumerate(layer.sub_blocks) if s.units
        ]

    def removal_order(self, key: Key) -> Scores:
        """What goes with every further removed unit, ascending: [units].

        Where units are pruned equally in groups, the p-th lowest of every group go together, so each of them counts
        as their mean.
        """
        grouped = np.sort(self.saliency[key].reshape(self.groups[key], -1), axis=1)
        ordered: Scores = np.repeat(grouped.mean(axis=0), self.groups[key])
        return ordered


@dataclass(frozen=True)
class Allocated:
    """An architecture within the budget, and what there is to say about how it came about."""

    architecture: Architecture
    facts: Mapping[str, Any] = field(default_factory=dict)


Allocation = Callable[[Ranked, float | None], Allocated]
"""(units with saliencies, γ or None) → allocation. γ is None for allocations other than `adaptive`."""


class UnitPool:
    """Units of several sub-blocks in one ranking, so that a share of all of them can be removed.

    Args:
        ranked: the units.
        slots: those of `Ranked.slots` that take part.
        divide: whether saliencies count per parameter.
    """

    def __init__(self, ranked: Ranked, slots: Sequence[tuple[int, int, SubBlockSpec]], *, divide: bool = False) -> None:
        self.slots = tuple(slots)
        values = [
            ranked.removal_order((i, s.name)) / (s.parameters_per_unit if divide else 1) for i, _, s in self.slots
        ]
        self.units = sum(len(v) for v in values)
        self.values = dict(zip([(i, j) for i, j, _ in self.slots], values, strict=True))
        order = np.argsort(np.concatenate(values), kind="stable") if values else np.zeros(0, dtype=np.int64)
        ranks = np.empty(self.units, dtype=np.int64)
        ranks[order] = np.arange(self.units)
        ends = np.cumsum([len(v) for v in values])[:-1]
        self._ranks = np.split(ranks, ends)  # each ascending, as its values are

    def kept(self, share: float) -> dict[tuple[int, int], int]:
        """Units kept per (layer, place) when the lowest `share` of all units is below the threshold.

        Rounded up to what is feasible, so that no sub-block loses a unit above the threshold; the smallest
        feasible width at least.
        """
        limit = round(min(max(share, 0.0), 1.0) * self.units)
        out = {}
        for (i, j, s), ranks in zip(self.slots, self._ranks, strict=True):
            needed = s.units - int(np.searchsorted(ranks, limit))
            choices = s.choices()
            out[i, j] = choices[min(bisect_left(choices, needed), len(choices) - 1)]
        return out

    @cached_property
    def most(self) -> float:
        """The largest share of units that can go."""
        return self.lost(1.0)

    def lost(self, share: float) -> float:
        """The share of units that goes at a threshold: less than what is below it, because widths are rounded up."""
        return 1.0 - sum(self.kept(share).values()) / self.units if self.units else 0.0

    def threshold(self, lost: float) -> float:
        """The lowest threshold, as a share of units below it, at which `lost` of all units goes."""
        low, high = -1, self.units
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.lost(middle / self.units) >= lost - 1e-12 else (middle, high)
        return high / self.units if self.units else 0.0
