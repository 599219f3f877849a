"""Genetic programming over pruning metrics (Pruner-Zero §3), as an ask-and-tell strategy of `tracenas.strategies`.

Tournament selection → sub-tree crossover → mutation → simplification → evaluation. Journal, exact resume and
progress are `tracenas.strategies.run_search`'s; what a metric is worth is passed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies import Batch, Proposal, Settings
from tracenas.strategies.draw import Draws
from tracenas.symbolic.grammar import ExpressionSpace, Program

__all__ = ["GeneticProgramming", "Programming"]


@dataclass(frozen=True)
class Programming:
    """What genetic programming has beside `tracenas.strategies.Settings`.

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


class GeneticProgramming:
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

    def __init__(
        self, space: ExpressionSpace, settings: Settings, programming: Programming, *, seeds: Sequence[Program] = ()
    ) -> None:
        if len(seeds) > settings.population:
            raise UserError(f"{len(seeds)} seeds for {settings.population} places in the first population")
        self.space, self.settings, self.programming = space, settings, programming
        self._seeds = tuple(seeds)
        self._seen: set[str] = set()
        self._population: list[tuple[float, Program]] = []
        self._generation = 0
        self._best = -math.inf
        self._stale = 0

    @property
    def planned(self) -> int:
        """Evaluations at most."""
        return self.settings.planned

    @property
    def generations(self) -> int:
        """Populations at most."""
        return self.settings.iterations

    def ask(self) -> Batch[Program] | None:
        """The next generation's new programs; None at the end, or after `patience` generations without progress."""
        patience = self.programming.patience
        if self._generation >= self.settings.iterations or (patience is not None and self._stale >= patience):
            return None
        rng = np.random.default_rng([self.settings.seed, self._generation])
        draws: Draws[Program] = Draws(self._seen, self.settings.redraws)
        if self._generation == 0:
            for seed in self._seeds:
                draws.offer(_proposal(self.space.repair(seed, rng)))
            draws.fill(self.settings.population, lambda: _proposal(self.space.sample(rng)))
        else:
            while len(draws) < self.settings.children:
                tries = range(self.settings.redraws + 1)
                if not any(draws.offer(_proposal(self._child(rng))) for _ in tries):
                    draws.fill(len(draws) + 1, lambda: _proposal(self.space.sample(rng)))
        return draws.batch(self._generation)

    def tell(self, batch: Batch[Program], scores: Sequence[float]) -> None:
        """The next parents: the elites so far and this batch; of equal scores only the simplest program."""
        elites = [pair for pair in self._population[: self.settings.elites] if math.isfinite(pair[0])]
        told = zip(scores, (p.candidate for p in batch.proposals), strict=True)
        ranked = sorted([*elites, *told], key=lambda pair: (-pair[0], pair[1].expression.nodes))
        simplest = {score: (score, program) for score, program in reversed(ranked)}
        self._population = list(reversed(simplest.values()))
        best = self._population[0][0] if self._population else -math.inf
        self._stale = 0 if best > self._best else self._stale + 1
        self._best = max(best, self._best)
        self._generation += 1

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


def _proposal(program: Program | None) -> Proposal[Program] | None:
    return None if program is None else Proposal(program)
