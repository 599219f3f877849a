"""Genetic programming over pruning metrics (Pruner-Zero §3), as an ask-and-tell strategy of `tracenas.strategies`.

Tournament selection → sub-tree crossover → mutation → simplification → evaluation. Journal, exact resume and
progress are `tracenas.strategies.run_search`'s; what a metric is worth is passed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies import SearchSettings
from tracenas.strategies.draw import Draws
from tracenas.strategies.strategy import Strategy, feasible
from tracenas.symbolic.grammar import ExpressionSpace, Program

__all__ = ["GeneticProgramming", "Programming"]


@dataclass(frozen=True)
class Programming:
    """What genetic programming has beside `tracenas.strategies.SearchSettings`.

    Args:
        tournament: programs that are drawn for a parent; the best of them becomes it.
        mutation: probability that a child is mutated.
        patience: generations without a better program after which the search ends; None: never.
    """

    tournament: int = 4
    mutation: float = 0.3
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.tournament < 1:
            raise UserError(f"tournament {self.tournament}: accepted: 1 or more")
        if not 0 <= self.mutation <= 1:
            raise UserError(f"mutation {self.mutation}: a probability; accepted: 0 to 1")
        if self.patience is not None and self.patience < 1:
            raise UserError(f"patience {self.patience}: accepted: 1 or more")


class GeneticProgramming(Strategy[Program]):
    """A strategy over `ExpressionSpace`.

    Every population is the elites and the children of the last one. A child equal to any program seen before
    (after simplification) is drawn again, then replaced by a random tree: no metric is evaluated twice. A
    metric that fails scores worst and is in no later population as an elite. Programs with exactly the same score
    (the same masks, by another formula) count as one, the simplest of them: they would crowd out all others.

    Args:
        space: what programs may look like.
        settings: population, elites, iterations, crossover rate, redraws and the seed are used.
        programming: the rest.
        seeds: programs that the first population contains.
    """

    space: ExpressionSpace

    def __init__(
        self,
        space: ExpressionSpace,
        settings: SearchSettings,
        programming: Programming,
        *,
        seeds: Sequence[Program] = (),
    ) -> None:
        super().__init__(space, settings, seeds=seeds)
        self.programming = programming
        self._population: list[tuple[float, Program]] = []
        self._best = -math.inf
        self._stale = 0

    @property
    def over(self) -> bool:
        """Whether the generations are over, or `patience` of them were without progress."""
        patience = self.programming.patience
        return super().over or (patience is not None and self._stale >= patience)

    def _following(self, draws: Draws[Program], rng: np.random.Generator) -> None:
        while len(draws) < self.settings.children:
            tries = range(self.settings.redraws + 1)
            if not any(draws.offer(feasible(self._child(rng))) for _ in tries):
                draws.fill(len(draws) + 1, lambda: self._sample(rng))

    def _learn(self, scored: list[tuple[float, Program]]) -> None:
        """The next parents: the elites so far and this batch; of equal scores only the simplest program."""
        elites = [pair for pair in self._population[: self.settings.elites] if math.isfinite(pair[0])]
        ranked = sorted([*elites, *scored], key=lambda pair: (-pair[0], pair[1].expression.nodes))
        simplest = {score: (score, program) for score, program in reversed(ranked)}
        self._population = list(reversed(simplest.values()))
        best = self._population[0][0] if self._population else -math.inf
        self._stale = 0 if best > self._best else self._stale + 1
        self._best = max(best, self._best)

    def _child(self, rng: np.random.Generator) -> Program | None:
        child = self._parent(rng)
        if rng.random() < self.settings.crossover:
            child = self.space.crossover(child, self._parent(rng), rng)
        child = self.space.mutate(child, rng, width=self.programming.mutation)
        return self.space.repair(child, rng)

    def _parent(self, rng: np.random.Generator) -> Program:
        """The winner of a tournament; the population is sorted, so the lowest place wins."""
        places = rng.integers(len(self._population), size=self.programming.tournament)
        return self._population[int(places.min())][1]
