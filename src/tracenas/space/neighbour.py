"""Small moves within the budget: a few sub-blocks trade quanta with the others."""

import numpy as np

from tracenas.space.architecture import Architecture
from tracenas.space.feasible import FeasibleSet
from tracenas.space.repair import fill, repair

__all__ = ["neighbour"]


def neighbour(space: FeasibleSet, arch: Architecture, rng: np.random.Generator, *, sigma: float) -> Architecture | None:
    """An architecture of the budget near `arch`, as large as the budget allows; None if it cannot be repaired.

    Of S active sub-blocks S^u are moved, u ~ U(0, 1): one of them as often as half of them. Each moves by
    max(1, |N(0, σ′)|·Q) of its Q quanta, up or down, σ′ ~ U(0, σ). Repair makes good for it by single quanta of random
    sub-blocks, and what is left of the budget is filled in a random order of the layers.
    """
    counts = space.counts(arch)
    slots = [(i, j) for i, row in enumerate(counts) for j, k in enumerate(row) if k and len(space.tables[i][j]) > 1]
    moved = rng.permutation(len(slots))[: round(len(slots) ** rng.random())].tolist()
    scale = sigma * rng.random()
    for slot in moved:
        i, j = slots[slot]
        spec = space.layers[i].sub_blocks[j]
        choices = spec.choices()
        step = max(1, round(abs(rng.normal(0.0, scale)) * len(choices)))
        at = spec.position(counts[i][j]) + (step if rng.random() < 0.5 else -step)
        counts[i][j] = choices[min(max(at, 0), len(choices) - 1)]
    repaired = repair(space, space.build(counts), rng)
    return None if repaired is None else fill(space, repaired, rng.permutation(len(space.layers)).tolist())
