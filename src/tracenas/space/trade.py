"""Local moves: two to four sub-blocks trade quanta, or make good for a flip in depth; all others stay as they are.

What differs from the parent is what was moved, so a refit that is remembered per width is found again, and two
candidates are the same model up to the first sub-block that was moved.
"""

from collections.abc import Sequence

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.feasible import FeasibleSet
from tracenas.space.widths import Slot, Widths

__all__ = ["MOST", "exchange", "trade"]

MOST = 4
"""Sub-blocks that differ between parent and child, at most."""

_TRIES = 12
"""Moves that are drawn before there is said to be none."""


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
    slots = [*receivers, *givers]
    if not slots:
        return not space.place(counts)
    few = Widths.within(space, counts, slots)
    first, last = list(range(len(receivers))), list(range(len(receivers), len(slots)))
    for member, slot in zip(first, receivers, strict=True):
        few.step(member, steps.get(slot, 0))
    for members in (last, first):
        few.shrink(members)
    for members in (first, last):
        few.grow(members)
    few.write(space, counts, slots)
    return few.fits and not space.place(counts)
