"""Widths of some sub-blocks of an architecture, moved by single quanta within any number of budgets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracenas.space.feasible import FeasibleSet

__all__ = ["Slot", "Widths"]

Slot = tuple[int, int]
"""(layer, sub-block)."""
Floats = npt.NDArray[np.float64]


class Widths:
    """Widths of a few sub-blocks, moved by single quanta within what the others leave of the budgets.

    Args:
        weights: per sub-block, what each of its widths costs, [widths, budgets], increasing.
        at: index of the width that each has.
        room: what they may cost together, [budgets].
    """

    def __init__(self, weights: Sequence[Floats], at: Sequence[int], room: Floats) -> None:
        self.weights, self.at, self.room = weights, list(at), room
        self.total: Floats = np.sum([w[place] for w, place in zip(weights, at, strict=True)], axis=0)

    @property
    def fits(self) -> bool:
        """Whether no budget is exceeded."""
        return bool((self.total <= self.room).all())

    @classmethod
    def within(cls, space: FeasibleSet, counts: Sequence[Sequence[int]], slots: Sequence[Slot]) -> "Widths":
        """Some sub-blocks of an architecture, all others as they are."""
        at = [space.layers[i].sub_blocks[j].position(counts[i][j]) for i, j in slots]
        some = cls([space.weights[i][j] for i, j in slots], at, space.room)
        some.room = space.room - (space.spent(counts) - some.total)
        return some

    def write(self, space: FeasibleSet, counts: list[list[int]], slots: Sequence[Slot]) -> None:
        """Put the widths into `counts`."""
        for (i, j), place in zip(slots, self.at, strict=True):
            counts[i][j] = space.layers[i].sub_blocks[j].choices()[place]

    def step(self, member: int, by: int) -> None:
        """Move one sub-block by some widths, no further than it goes."""
        to = min(max(self.at[member] + by, 0), len(self.weights[member]) - 1)
        self.total = self.total + self.weights[member][to] - self.weights[member][self.at[member]]
        self.at[member] = to

    def shrink(self, members: Sequence[int]) -> None:
        """Take quanta that help from these in turn until the budgets are met or nothing is left to take."""
        helpful = True
        while helpful:
            helpful = False
            for member in members:
                if self._helps(member):
                    self.step(member, -1)
                    helpful = True

    def grow(self, members: Sequence[int]) -> None:
        """Give quanta to these in turn until not one more fits."""
        grown = True
        while grown:
            grown = False
            for member in members:
                steps, place = self.weights[member], self.at[member]
                if place + 1 < len(steps) and (self.total + steps[place + 1] - steps[place] <= self.room).all():
                    self.step(member, 1)
                    grown = True

    def _helps(self, member: int) -> bool:
        """Whether one quantum less counts in a budget that is exceeded."""
        widths, place = self.weights[member], self.at[member]
        return place > 0 and bool((widths[place] > widths[place - 1])[self.total > self.room].any())
