"""Moving a candidate into several budgets at once, or into one that not all sub-blocks count in.

What exceeds a budget gives up quanta that count in it; then what may still grow does, until all of it counts in a
budget that is reached, or does not fit (`FeasibleSet.place`).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracenas.space.feasible import FeasibleSet

__all__ = ["settle_several"]

_DRAWN = 16
"""Slots that are drawn at a time; one that cannot move by then is passed over."""

Floats = npt.NDArray[np.float64]


def settle_several(space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator) -> None:
    """Move the widths of active sub-blocks towards the window, in place."""
    slots = [(i, j) for i, row in enumerate(counts) for j, kept in enumerate(row) if kept]
    if not slots:
        return
    balance = _Balance(space, counts, slots, rng)
    balance.shrink()
    balance.grow()
    for (i, j), at in zip(slots, balance.at, strict=True):
        counts[i][j] = space.layers[i].sub_blocks[j].choices()[at]


class _Balance:
    """Random single-quantum moves; slots are drawn in proportion to their number of quanta."""

    def __init__(
        self,
        space: FeasibleSet,
        counts: Sequence[Sequence[int]],
        slots: Sequence[tuple[int, int]],
        rng: np.random.Generator,
    ) -> None:
        self._rng = rng
        self._weights = [space.weights[i][j] for i, j in slots]
        self.at = [space.layers[i].sub_blocks[j].position(counts[i][j]) for i, j in slots]
        self._quanta = np.array([len(w) - 1 for w in self._weights], dtype=np.float64)
        self._left = space.room - space.spent(counts)
        self._depths = np.array([limit - lower for lower, limit in space.windows], dtype=np.float64)
        self._less = np.zeros((len(slots), len(self._left)))
        self._more = np.zeros_like(self._less)
        for slot in range(len(slots)):
            self._price(slot)

    def shrink(self) -> None:
        """Until no budget is exceeded, or nothing that counts in one can go."""
        while (self._left < 0).any():
            helps = np.asarray((self._less[:, self._left < 0] > 0).any(axis=1))
            if not self._moved(helps, -1):
                return

    def grow(self) -> None:
        """Until the window is reached, or nothing fits."""
        while (self._left >= 0).all():
            if not self._moved(self._may_grow(self._more), 1):
                return

    def _may_grow(self, more: Floats) -> npt.NDArray[np.bool_]:
        """Whether what costs this fits and counts in no budget that is reached, per row."""
        reached = self._left <= self._depths
        return np.asarray((more <= self._left).all(axis=1) & ~(more[:, reached] > 0).any(axis=1))

    def _moved(self, movable: npt.NDArray[np.bool_], by: int) -> bool:
        """Move some slots by a quantum each, as long as that helps; False if none can."""
        chances = self._quanta * movable
        if not chances.any():
            return False
        for slot in self._rng.choice(len(chances), size=_DRAWN, p=chances / chances.sum()).tolist():
            if by < 0:
                exceeded = self._left < 0
                if not exceeded.any():
                    break
                helps = bool((self._less[slot, exceeded] > 0).any())
            else:
                helps = bool(self._may_grow(self._more[slot : slot + 1])[0])
            if helps:
                self._left = self._left + (self._less[slot] if by < 0 else -self._more[slot])
                self.at[slot] += by
                self._price(slot)
        return True

    def _price(self, slot: int) -> None:
        """What the slot's last quantum gives back and its next one costs."""
        widths, at = self._weights[slot], self.at[slot]
        self._less[slot] = widths[at] - widths[at - 1] if at else 0.0
        self._more[slot] = widths[at + 1] - widths[at] if at + 1 < len(widths) else np.inf
