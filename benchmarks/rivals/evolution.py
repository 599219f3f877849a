"""One parent, λ offspring, and a selection in stages: what EvoPress and Týr have in common.

Few of the offspring survive a little text, these are compared on more, and in the last stage the parent takes part
(EvoPress, arXiv:2410.14649, Algorithm 1). The fitness is better the lower it is.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

__all__ = ["Stage", "evolve"]

C = TypeVar("C", bound=Hashable)


class Stage(NamedTuple):
    """One comparison of a selection.

    Args:
        survivors: candidates that are left behind it.
        sequences: of the text, the first ones.
    """

    survivors: int
    sequences: int


def evolve(
    first: Sequence[C],
    mutated: Callable[[C], C],
    fitness: Callable[[C, int], float],
    stages: Sequence[Stage],
    *,
    generations: int,
    offspring: int,
    report: Callable[[int, float], None] = lambda generation, value: None,
) -> C:
    """The best candidate that was found.

    Args:
        first: candidates, the best of which on the last stage's text is the first parent.
        mutated: a child of a parent.
        fitness: (candidate, sequences of the text) → what is to be low.
        stages: of a selection; the last one has one survivor.
        generations: of offspring.
        offspring: of every generation.
        report: told the fitness of the parent after every generation.
    """
    if stages[-1].survivors != 1:
        raise ValueError(f"the last stage leaves one survivor, not {stages[-1].survivors}")
    text = stages[-1].sequences
    value, parent = _best([(fitness(one, text), one) for one in dict.fromkeys(first)])
    for generation in range(generations):
        children = dict.fromkeys(mutated(parent) for _ in range(offspring))
        children.pop(parent, None)
        left = list(children)
        for stage in stages[:-1]:
            scored = sorted(((fitness(one, stage.sequences), one) for one in left), key=lambda pair: pair[0])
            left = [one for _, one in scored[: stage.survivors]]
        value, parent = _best([(value, parent), *((fitness(one, text), one) for one in left)])
        report(generation, value)
    return parent


def _best(scored: Sequence[tuple[float, C]]) -> tuple[float, C]:
    """The first of the lowest fitness."""
    return min(scored, key=lambda pair: pair[0])
