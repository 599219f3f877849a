"""EvoPress (Sieberling et al., arXiv:2410.14649) over depth: which attentions and MLPs go, by evolution.

A candidate is a set of sub-blocks that are gone, as many of every kind as the budget asks for. Level-switch mutation
(§3.2): of one kind, one that was gone comes back and one that was there goes, so that the budget stays met; between one
and three such switches, the smaller of two draws. The fitness is the KL divergence from the dense model (§3.3); the
selection is that of `rivals.evolution`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from torch import Tensor

from rivals.divergence import Divergence
from rivals.evolution import Stage, evolve
from tracenas.families import Block, Key
from tracenas.models.surgery.supernet import bypass

__all__ = ["DropDivergence", "Dropped", "find_dropped"]

Dropped = frozenset[Key]
"""Sub-blocks that are gone."""


class DropDivergence:
    """The divergence of the model without some sub-blocks.

    Args:
        tokens: int64 [N, L].
    """

    def __init__(self, model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> None:
        self.model, self.blocks = model, tuple(blocks)
        self._divergence = Divergence(model, tokens, micro_batch)

    def __call__(self, dropped: Dropped, sequences: int) -> float:
        """Of a candidate, on the first sequences."""
        with ExitStack() as undo:
            for index, block in enumerate(self.blocks):
                for sub in block.sub_blocks:
                    if (index, sub.spec.name) in dropped:
                        bypass(self.model, block, sub, undo)
            return self._divergence.now(sequences)


def find_dropped(
    candidates: Sequence[Key],
    counts: Mapping[str, int],
    fitness: Callable[[Dropped, int], float],
    stages: Sequence[Stage],
    rng: np.random.Generator,
    *,
    generations: int,
    offspring: int,
    initial: int,
    report: Callable[[int, float], None] = lambda generation, value: None,
) -> Dropped:
    """The best set of sub-blocks to drop.

    Args:
        candidates: sub-blocks that may go.
        counts: how many of every kind (`attention`, `mlp`) go.
        initial: random candidates, the best of which is the first parent.

    The others are those of `rivals.evolution`.
    """
    return evolve(
        [_drawn(candidates, counts, rng) for _ in range(initial)],
        lambda parent: _mutated(parent, candidates, rng),
        fitness,
        stages,
        generations=generations,
        offspring=offspring,
        report=report,
    )


def _drawn(candidates: Sequence[Key], counts: Mapping[str, int], rng: np.random.Generator) -> Dropped:
    """A random set with as many of every kind."""
    found: set[Key] = set()
    for kind, count in counts.items():
        of_kind = [key for key in candidates if key[1] == kind]
        found |= {of_kind[i] for i in rng.permutation(len(of_kind))[:count]}
    return frozenset(found)


def _mutated(parent: Dropped, candidates: Sequence[Key], rng: np.random.Generator) -> Dropped:
    """The parent after a few level switches."""
    gone = set(parent)
    for _ in range(int(min(rng.integers(1, 4), rng.integers(1, 4)))):
        kinds = sorted({kind for _, kind in gone if any(k == kind and (i, k) not in gone for i, k in candidates)})
        if not kinds:  # nothing is gone, or everything
            break
        kind = kinds[int(rng.integers(len(kinds)))]
        back, leaving = (
            [key for key in candidates if key[1] == kind and (key in gone) == is_gone] for is_gone in (True, False)
        )
        gone.remove(back[int(rng.integers(len(back)))])
        gone.add(leaving[int(rng.integers(len(leaving)))])
    return frozenset(gone)
