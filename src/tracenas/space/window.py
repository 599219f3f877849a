"""The window below a budget: how far below its limit a candidate may stay (decision 7)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Priced", "Table"]

Table = tuple[int, ...]
"""What each of a sub-block's `choices()` costs, ascending; empty where there is nothing to keep."""


@dataclass(frozen=True)
class Priced:
    """The sub-blocks of a space by what they cost.

    Args:
        tables: per layer and sub-block.
        outside: what no architecture removes.
        smallest: units that the cheapest architecture keeps, per layer and sub-block.
        together: per layer, whether its sub-blocks are only bypassed together.
        blockwise: whether that holds of all.
    """

    tables: Sequence[Sequence[Table]]
    outside: int
    smallest: Sequence[Sequence[int]]
    together: Sequence[bool]
    blockwise: bool

    def window(self, limit: int, tolerance: float) -> tuple[int, int]:
        """`[lower, limit]`: the tolerance, widened to the smallest whole-quantum move.

        Where the small moves cannot bridge a large one, it reaches down to what coarse moves and then fine ones fill.
        """
        steps = (max(b - a for a, b in itertools.pairwise(t)) for row in self.tables for t in row if len(t) > 1)
        moves = [step for step in steps if step]
        if not moves:  # no sub-block has a choice of widths: the single moves are those in depth
            parts = [[table[-1] for table in row if table] for row in self.tables]
            moves = [sum(p) for p in parts] if self.blockwise else [c for p in parts for c in p]
        deep = limit - max(int(limit * tolerance), min(moves, default=0))
        return min(self._filled(limit), deep), limit

    def _filled(self, limit: int) -> int:
        """What `smallest` costs once all that fits has come back, blocks, then units, the largest steps first.

        `limit` where it does not even fit itself.
        """
        widened: list[Table] = []
        away: list[list[Table]] = []
        for row, kept, together in zip(self.tables, self.smallest, self.together, strict=True):
            there = [table for table in row if table]
            if any(kept):
                widened += there
            else:
                away += [there] if together else [[table] for table in there]
        cost = self.outside + sum(table[0] for table in widened)
        if cost > limit:
            return limit
        for parts in sorted(away, key=lambda parts: -sum(table[0] for table in parts)):
            if cost + sum(table[0] for table in parts) <= limit:
                cost += sum(table[0] for table in parts)
                widened += parts
        for table in sorted(widened, key=lambda table: table[0] - table[min(1, len(table) - 1)]):
            cost += max(wider - table[0] for wider in table if cost + wider - table[0] <= limit)
        return cost
