"""Widths of some sub-blocks of an architecture, moved by single quanta within any number of budgets."""

from collections.abc import Sequence

from tracenas.space.feasible import FeasibleSet, Prices

__all__ = ["Slot", "Widths"]

Slot = tuple[int, int]
"""(layer, sub-block)."""


class Widths:
    """Widths of a few sub-blocks, moved by single quanta within what the others leave of the budgets.

    Args:
        prices: per sub-block, what each of its widths costs in every budget, increasing.
        at: index of the width that each has.
        room: what they may cost together, per budget.
    """

    def __init__(self, prices: Sequence[Prices], at: Sequence[int], room: Sequence[float]) -> None:
        self.prices, self.at, self.room = prices, list(at), list(room)
        self.total = [0.0] * len(self.room)
        for widths, place in zip(prices, at, strict=True):
            self.total = [have + price for have, price in zip(self.total, widths[place], strict=True)]

    @property
    def fits(self) -> bool:
        """Whether no budget is exceeded."""
        return all(have <= room for have, room in zip(self.total, self.room, strict=True))

    @classmethod
    def within(cls, space: FeasibleSet, counts: Sequence[Sequence[int]], slots: Sequence[Slot]) -> "Widths":
        """Some sub-blocks of an architecture, all others as they are."""
        at = [space.layers[i].sub_blocks[j].position(counts[i][j]) for i, j in slots]
        some = cls([space.prices[i][j] for i, j in slots], at, space.room.tolist())
        some.room = (space.room - (space.spent(counts) - some.total)).tolist()
        return some

    def write(self, space: FeasibleSet, counts: list[list[int]], slots: Sequence[Slot]) -> None:
        """Put the widths into `counts`."""
        for (i, j), place in zip(slots, self.at, strict=True):
            counts[i][j] = space.layers[i].sub_blocks[j].choices()[place]

    def step(self, member: int, by: int) -> None:
        """Move one sub-block by some widths, no further than it goes."""
        to = min(max(self.at[member] + by, 0), len(self.prices[member]) - 1)
        self.total = self._moved(member, to)
        self.at[member] = to

    def _moved(self, member: int, to: int) -> list[float]:
        """What all cost once one of them has another width."""
        widths = self.prices[member]
        return [
            have + new - old for have, new, old in zip(self.total, widths[to], widths[self.at[member]], strict=True)
        ]

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
                wider = self.at[member] + 1
                if wider < len(self.prices[member]) and all(
                    have <= room for have, room in zip(self._moved(member, wider), self.room, strict=True)
                ):
                    self.step(member, 1)
                    grown = True

    def _helps(self, member: int) -> bool:
        """Whether one quantum less counts in a budget that is exceeded."""
        widths, place = self.prices[member], self.at[member]
        return place > 0 and any(
            now > before and have > room
            for now, before, have, room in zip(widths[place], widths[place - 1], self.total, self.room, strict=True)
        )
