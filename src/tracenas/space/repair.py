"""Moving a candidate into the budget's window, one quantum of one sub-block at a time (decision 7)."""

from collections.abc import Sequence

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.feasible import FeasibleSet
from tracenas.space.several import settle_several
from tracenas.space.widths import Slot, Widths

__all__ = ["fill", "repair", "settle", "spread"]


def repair(space: FeasibleSet, arch: Architecture, rng: np.random.Generator) -> Architecture | None:
    """The architecture moved into `space.window`, or None.

    Sub-blocks are chosen at random, in proportion to their number of quanta, so that the correction keeps the
    shape of the candidate; no more quanta move than are needed. Blocks are skipped or brought back only where
    widths alone cannot reach the window.
    """
    counts = space.counts(arch)
    _respect_depth(space, counts, rng)
    for _ in range(2 * sum(len(row) for row in counts) + 1):
        settle(space, counts, rng)
        place = space.place(counts)
        if not place:
            return space.build(counts)
        if not _move_depth(space, counts, rng, shrink=place > 0):
            return None
    return None


def settle(space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator) -> None:
    """Move widths towards the window, in place.

    Where only quanta larger than the window are left to move, one of them jumps over it and smaller ones
    come back from the other side.
    """
    if not space.plain:
        settle_several(space, counts, rng)
        return
    lower, limit = space.window
    walk = _Walk(space, counts, rng)
    if not lower <= walk.cost <= limit:
        up = walk.cost < lower
        walk.towards(up=up)
        if not lower <= walk.cost <= limit:
            before, cost = list(walk.at), walk.cost
            if walk.jump(up=up):
                walk.towards(up=not up)
            if not lower <= walk.cost <= limit:
                walk.at, walk.cost = before, cost
        walk.write(counts)


def fill(space: FeasibleSet, arch: Architecture, order: Sequence[int] | None = None) -> Architecture:
    """Grow active sub-blocks, the layers in this order (None: evenly spread), until not one more quantum fits."""
    counts = space.counts(arch)
    order = spread(len(counts)) if order is None else order
    most = max(len(row) for row in counts)
    slots = [(i, j) for j in range(most) for i in order if j < len(counts[i]) and counts[i][j]]
    if not space.plain:
        some = Widths.within(space, counts, slots)
        some.grow(range(len(slots)))
        some.write(space, counts, slots)
        return space.build(counts)
    limit, cost = space.window[1], space.cost(arch)
    grown = True
    while grown:
        grown = False
        for i, j in slots:
            spec, costs = space.layers[i].sub_blocks[j], space.tables[i][j]
            at = spec.position(counts[i][j])
            if at + 1 < len(costs) and cost + costs[at + 1] - costs[at] <= limit:
                counts[i][j] = spec.choices()[at + 1]
                cost += costs[at + 1] - costs[at]
                grown = True
    return space.build(counts)


def spread(n: int) -> list[int]:
    """0 … n-1 so that every prefix is spread evenly (van der Corput order)."""
    bits = max(1, (n - 1).bit_length())
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [i for i in reversed_bits if i < n]


class _Walk:
    """Random single-quantum moves of the active sub-blocks' widths.

    Slots are drawn in proportion to their number of quanta, many at a time: a drawn slot that cannot move is
    passed over, which is the same as drawing among those that can.
    """

    def __init__(self, space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator) -> None:
        self._space = space
        self._rng = rng
        self._slots: list[Slot] = [(i, j) for i, row in enumerate(counts) for j, k in enumerate(row) if k]
        self._costs = [space.tables[i][j] for i, j in self._slots]
        self._weights = np.array([len(costs) - 1 for costs in self._costs], dtype=np.float64)
        self.at = [space.layers[i].sub_blocks[j].position(counts[i][j]) for i, j in self._slots]
        self.cost = space.measures[0].outside + sum(costs[at] for costs, at in zip(self._costs, self.at, strict=True))

    def towards(self, *, up: bool) -> None:
        """Move into the window from below or above; stops outside where every move left jumps over it."""
        lower, limit = self._space.window
        step = 1 if up else -1
        movable = self._weights.copy()
        while (self.cost < lower) if up else (self.cost > limit):
            total = movable.sum()
            if not total:
                return
            for s in self._draw(movable / total, abs(self.cost - (lower if up else limit))):
                at = self.at[s] + step
                if not movable[s]:
                    continue
                costs = self._costs[s]
                cost = self.cost + costs[at] - costs[at - step] if 0 <= at < len(costs) else -1
                if cost < 0 or (cost > limit if up else cost < lower):
                    movable[s] = 0.0
                    continue
                self.at[s], self.cost = at, cost
                if lower <= cost <= limit:
                    return

    def jump(self, *, up: bool) -> bool:
        """Move one slot by a quantum, wherever that leads; False if none can move."""
        step = 1 if up else -1
        movable = self._weights * [0 <= at + step < len(costs) for at, costs in zip(self.at, self._costs, strict=True)]
        if not movable.sum():
            return False
        s = int(self._rng.choice(len(movable), p=movable / movable.sum()))
        self.cost += self._costs[s][self.at[s] + step] - self._costs[s][self.at[s]]
        self.at[s] += step
        return True

    def write(self, counts: list[list[int]]) -> None:
        """Put the widths into `counts`."""
        for (i, j), at in zip(self._slots, self.at, strict=True):
            counts[i][j] = self._space.layers[i].sub_blocks[j].choices()[at]

    def _draw(self, probabilities: np.ndarray, distance: int) -> list[int]:
        """Slots to try: about as many as it takes to go `distance`, 16 to 4,096."""
        quantum = sum(
            p * (costs[-1] - costs[0]) / (len(costs) - 1)
            for p, costs in zip(probabilities.tolist(), self._costs, strict=True)
            if p
        )
        size = min(4096, max(16, int(1.2 * distance / max(quantum, 1.0))))
        picks: list[int] = self._rng.choice(len(probabilities), size=size, p=probabilities).tolist()
        return picks


def _move_depth(space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator, *, shrink: bool) -> bool:
    """Skip (or bring back, at minimum width) one block or sub-block; False where none may move."""
    moves = [
        (i, j) for i, j in space.flippable(counts) if (any(counts[i]) if j is None else counts[i][j] > 0) == shrink
    ]
    if not moves:
        return False
    i, j = moves[int(rng.integers(len(moves)))]
    for q in range(len(counts[i])) if j is None else (j,):
        choices = space.layers[i].sub_blocks[q].choices()
        counts[i][q] = 0 if shrink or not choices else choices[0]
    return True


def _respect_depth(space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator) -> None:
    """Bring back excluded sub-blocks, protected blocks, whole ones under block granularity, and up to `min_depth`."""
    for i, row in enumerate(counts):
        specs = space.layers[i].sub_blocks
        row[:] = [s.units if (i, s.name) in space.excluded else k for s, k in zip(specs, row, strict=True)]
        if any(row) or i in space.keep_layers:
            whole = space.granularity == "block"
            for j, s in enumerate(specs):
                if not row[j] and s.units and (whole or not any(row)):
                    row[j] = s.choices()[0]
    skipped = [i for i, row in enumerate(counts) if not any(row)]
    while skipped and len(counts) - len(skipped) < space.min_depth:
        i = skipped.pop(int(rng.integers(len(skipped))))
        counts[i] = _narrowest(space, i)
    for stack, active in space.active(counts).items():
        if not active:
            in_stack = [i for i, layer in enumerate(space.layers) if layer.stack == stack]
            i = in_stack[int(rng.integers(len(in_stack)))]
            counts[i] = _narrowest(space, i)


def _narrowest(space: FeasibleSet, layer: int) -> list[int]:
    return [s.choices()[0] if s.units else 0 for s in space.layers[layer].sub_blocks]
