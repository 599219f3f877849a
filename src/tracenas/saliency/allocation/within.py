"""Thresholds raised until the budget is met, and the rest of the budget given to the best units left out."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Scores, UnitPool
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["at_shares", "lowest_level", "within_budget"]

PoolShares = Callable[[float], Sequence[float]]
"""Level in [0, 1] → the share of units that every pool loses; each share grows with the level."""

Worth = Callable[[SubBlockSpec, Scores], float]
"""What the saliencies of a quantum's units are worth, compared with the quanta of other sub-blocks."""


def at_shares(space: SearchSpace, pools: Sequence[UnitPool], shares: Sequence[float]) -> Architecture:
    """The architecture in which every pool has lost its share."""
    rows = [[0] * len(layer.sub_blocks) for layer in space.layers]
    for pool, share in zip(pools, shares, strict=True):
        for (i, j), kept in pool.kept(share).items():
            rows[i][j] = kept
    return space.build(rows)


def lowest_level(space: SearchSpace, pools: Sequence[UnitPool], shares: PoolShares) -> float | None:
    """The lowest level at which the architecture exceeds no budget; None if the highest does."""

    def fits(level: float) -> bool:
        return space.fits(at_shares(space, pools, shares(level)))

    if not fits(1.0):
        return None
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def within_budget(space: SearchSpace, pools: Sequence[UnitPool], shares: Sequence[float], worth: Worth) -> Architecture:
    """The architecture at these shares, which exceeds no budget, grown until it lies in the window.

    Quanta come back in the order of their worth as long as they fit; where that ends below the
    window (only large quanta are left), `SearchSpace.repair` makes the last moves.

    Raises:
        UserError: if the window cannot be met.
    """
    rows = space.counts(at_shares(space, pools, shares))
    left = space.room - space.spent(rows)
    heap: list[tuple[float, int, int, int]] = []
    specs = {(i, j): s for pool in pools for i, j, s in pool.slots}
    values = {slot: v for pool in pools for slot, v in pool.values.items()}

    def push(i: int, j: int) -> None:
        spec = specs[i, j]
        at, choices = spec.position(rows[i][j]), spec.choices()
        if at + 1 < len(choices):
            gained = values[i, j][spec.units - choices[at + 1] : spec.units - choices[at]]
            heapq.heappush(heap, (-worth(spec, gained), i, j, at + 1))

    for i, j in specs:
        push(i, j)
    while heap:
        _, i, j, at = heapq.heappop(heap)
        more = space.weights[i][j][at] - space.weights[i][j][at - 1]
        if (more <= left).all():
            left = left - more
            rows[i][j] = specs[i, j].choices()[at]
            push(i, j)
    architecture = space.build(rows)
    if space.place(rows):
        repaired = space.repair(architecture, np.random.default_rng(0))
        if repaired is None:
            raise UserError(f"no such architecture lies in {space.window_said}; widen the tolerance")
        architecture = repaired
    return architecture
