"""Local moves: two to four sub-blocks trade quanta, or make good for a flip in depth; all others stay as they are.

What differs from the parent is what was moved, so a refit that is remembered per width is found again, and two
candidates are the same model up to the first sub-block that was moved. Budgets are vectors here: any number of them.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tracenas.space.architecture import Architecture
from tracenas.space.feasible import FeasibleSet

__all__ = ["MOST", "Trade", "exchange", "trade"]

MOST = 4
"""Sub-blocks that differ between parent and child, at most."""

_TRIES = 12
"""Moves that are drawn before there is said to be none."""

Slot = tuple[int, int]
"""(layer, sub-block)."""
Floats = npt.NDArray[np.float64]


class Trade:
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

    def step(self, member: int, by: int) -> None:
        """Move one sub-block by some widths, no further than it goes."""
        to = min(max(self.at[member] + by, 0), len(self.weights[member]) - 1)
        self.total = self.total + self.weights[member][to] - self.weights[member][self.at[member]]
        self.at[member] = to

    def shrink(self, members: Sequence[int]) -> None:
        """Take quanta from these in turn until the budgets are met or nothing is left to take."""
        while not self.fits and any(self.at[m] for m in members):
            for member in members:
                if not self.fits:
                    self.step(member, -1)

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


def trade(
    space: FeasibleSet, arch: Architecture, rng: np.random.Generator, *, sigma: float, depth: float = 0.0
) -> Architecture | None:
    """An architecture of the budget that differs from `arch` in two to four sub-blocks; None if none was drawn.

    Some of them get max(1, |N(0, σ′)|·Q) of their Q quanta each, σ′ ~ U(0, σ); the others pay for it quantum by quantum
    in turn. Then what still fits is given out among them. With probability `depth` one bit of the depth mask is flipped
    instead (the sub-blocks of its block count among the four), and the others make good for that.

    Args:
        arch: above the window's lower end only if its few sub-blocks can be filled up to it.
    """
    before = space.counts(arch)
    for _ in range(_TRIES):
        counts = [list(row) for row in before]
        flipped = _flip(space, counts, rng) if rng.random() < depth else []
        others = [slot for slot in _movable(space, counts) if slot not in flipped]
        fewest, most = (1, MOST - len(flipped)) if flipped else (2, MOST)
        if most < 1 or len(others) < fewest:
            continue
        count = int(rng.integers(fewest, min(most, len(others)) + 1))
        picked = [others[place] for place in rng.permutation(len(others))[:count].tolist()]
        receivers = [slot for slot in flipped if counts[slot[0]][slot[1]]]
        if not flipped:
            receivers = picked[: int(rng.integers(1, count))]
        steps = {slot: _step(space, slot, rng, sigma * rng.random()) for slot in receivers if not flipped}
        givers = [slot for slot in picked if slot not in receivers]
        if _traded(space, counts, receivers, givers, steps) and counts != before:
            return space.build(counts)
    return None


def exchange(space: FeasibleSet, a: Architecture, b: Architecture, rng: np.random.Generator) -> Architecture | None:
    """`a` with one contiguous range of blocks from `b`; up to four sub-blocks make good for the difference.

    None where depth or budget forbid it.
    """
    depth = len(space.layers)
    start = int(rng.integers(0, depth))
    stop = int(rng.integers(start, depth)) + 1
    counts = [list(row) for row in (*space.counts(a)[:start], *space.counts(b)[start:stop], *space.counts(a)[stop:])]
    active = space.active(counts)
    if sum(active.values()) < space.min_depth or not all(active.values()):
        return None
    others = _movable(space, counts)
    picked = [others[place] for place in rng.permutation(len(others))[:MOST].tolist()]
    return space.build(counts) if _traded(space, counts, [], picked, {}) else None


def _movable(space: FeasibleSet, counts: Sequence[Sequence[int]]) -> list[Slot]:
    """Active sub-blocks that have a choice of widths."""
    return [(i, j) for i, row in enumerate(counts) for j, k in enumerate(row) if k and len(space.tables[i][j]) > 1]


def _step(space: FeasibleSet, slot: Slot, rng: np.random.Generator, scale: float) -> int:
    return max(1, round(abs(rng.normal(0.0, scale)) * len(space.tables[slot[0]][slot[1]])))


def _flip(space: FeasibleSet, counts: list[list[int]], rng: np.random.Generator) -> list[Slot]:
    """Flip one bit of the depth mask in place; the sub-blocks that have changed. One comes back as its kind is wide."""
    flippable = space.flippable(counts)
    if not flippable:
        return []
    i, j = flippable[int(rng.integers(len(flippable)))]
    specs = space.layers[i].sub_blocks
    slots = [(i, q) for q in (range(len(specs)) if j is None else (j,)) if specs[q].units]
    gone = not any(counts[i][q] for _, q in slots)
    changed = [(i, q) for i, q in slots if gone or counts[i][q]]
    for _, q in changed:
        counts[i][q] = specs[q].round(space.mean_ratio(counts, specs[q].name) * specs[q].units) if gone else 0
    return changed


def _traded(
    space: FeasibleSet,
    counts: list[list[int]],
    receivers: Sequence[Slot],
    givers: Sequence[Slot],
    steps: dict[Slot, int],
) -> bool:
    """Move these widths into the window, in place; whether that could be done.

    Args:
        steps: widths that receivers get before anyone pays.
    """
    lower, limit = space.window
    slots = [*receivers, *givers]
    if not slots:
        return lower <= space.cost(space.build(counts)) <= limit
    weights = [np.array(space.tables[i][j], dtype=np.float64)[:, None] for i, j in slots]
    at = [space.layers[i].sub_blocks[j].position(counts[i][j]) for i, j in slots]
    few = Trade(weights, at, np.zeros(1))
    rest = space.cost(space.build(counts)) - few.total
    few.room = limit - rest
    first, last = list(range(len(receivers))), list(range(len(receivers), len(slots)))
    for member, slot in zip(first, receivers, strict=True):
        few.step(member, steps.get(slot, 0))
    for members in (last, first):
        few.shrink(members)
    for members in (first, last):
        few.grow(members)
    for (i, j), place in zip(slots, few.at, strict=True):
        counts[i][j] = space.layers[i].sub_blocks[j].choices()[place]
    return bool(few.fits and (few.total + rest >= lower).all())
