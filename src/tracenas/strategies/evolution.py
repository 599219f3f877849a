"""The evolutionary search of TraceNAS §3.5 (Algorithm 1, Table 5; decisions 8 and 9)."""

import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Batch, Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, Settings

__all__ = ["Evolution"]

C = TypeVar("C", bound=Candidate)


class Evolution(Generic[C]):
    """Elites carry over; children are crossed and mutated elites, repaired into the budget.

    Generation 0 is an anchor (`init`), the `seeds`, and mutations of the anchor. A candidate that cannot be
    repaired takes its place with -inf. No candidate is asked for twice.

    Args:
        space: any space; only the operations of `Space` are used.
        settings: sizes, rates and the seed.
        prior: needed for `init: importance`.
        seeds: candidates that generation 0 contains besides the anchor, repaired if they need it; with `init: given`
            the first of them is the anchor.

    Raises:
        UserError: if there is no prior for `init: importance`, no seed for `given`, no anchor within the budget, or
            more seeds than places.
    """

    def __init__(
        self, space: Space[C], settings: Settings, *, prior: Prior | None = None, seeds: Sequence[C] = ()
    ) -> None:
        self.space = space
        self.settings = settings
        if settings.init == "importance" and prior is None:
            raise UserError("init 'importance' needs an importance prior; without one: uniform, random")
        if settings.init == "given" and not seeds:
            raise UserError("init 'given' needs a seed architecture; without one: uniform, random")
        if len(seeds) > settings.seats:
            raise UserError(f"{len(seeds)} seed architectures for {settings.seats} places in the initial population")
        self._prior = prior
        self._seeds = tuple(seeds)
        self._seen: set[str] = set()
        self._elites: list[tuple[float, C]] = []
        self._generation = 0
        self._asked = False

    @property
    def planned(self) -> int:
        """Evaluations at most."""
        return self.settings.planned

    @property
    def generations(self) -> int:
        """Populations in all."""
        return self.settings.iterations

    @property
    def elites(self) -> list[C]:
        """The parents of the next generation, best first (fewer than asked for if too few have a score)."""
        return [candidate for _, candidate in self._elites]

    def ask(self) -> Batch[C] | None:
        """The next generation's new candidates."""
        if self._asked:
            raise RuntimeError(f"generation {self._generation} was asked for and not told")
        if self._generation >= self.settings.iterations:
            return None
        rng = np.random.default_rng([self.settings.seed, self._generation])
        draws: Draws[C] = Draws(self._seen, self.settings.redraws)
        if self._generation == 0:
            self._initial(draws, rng)
        else:
            draws.fill(self.settings.children, lambda: self._child(rng))
        self._asked = True
        return draws.batch(self._generation)

    def tell(self, batch: Batch[C], scores: Sequence[float]) -> None:
        """Keep the best `elites` of the elites and the batch; the earlier candidate wins a tie."""
        if not self._asked or batch.generation != self._generation:
            raise RuntimeError(f"told generation {batch.generation}, which was not asked for")
        told = zip(scores, (p.candidate for p in batch.proposals), strict=True)
        ranked = [*self._elites, *((score, c) for score, c in told if math.isfinite(score))]
        self._elites = sorted(ranked, key=lambda pair: -pair[0])[: self.settings.elites]
        self._generation += 1
        self._asked = False

    def _initial(self, draws: Draws[C], rng: np.random.Generator) -> None:
        anchor = self._anchor()
        if anchor is not None:
            draws.offer(Proposal(anchor))
        for seed in self._seeds:
            draws.offer(self._repaired(seed, rng))
        draws.fill(
            self.settings.population,
            lambda: self._sample(rng) if anchor is None else self._mutant(anchor, rng),
        )

    def _anchor(self) -> C | None:
        """The candidate that generation 0 is built around (A.1); None for `init: random`."""
        if self.settings.init == "random":
            return None
        if self.settings.init == "uniform":
            anchor = self.space.uniform()
        elif self.settings.init == "given":
            anchor = self.space.repair(self._seeds[0], np.random.default_rng(self.settings.seed))
        else:
            assert self._prior is not None  # checked on construction
            anchor = self.space.profile(self._prior.ratios, self._prior.drop_order)
        if anchor is None:
            raise UserError(
                f"init '{self.settings.init}': no such architecture lies within the budget; "
                "use init 'random' or a wider tolerance"
            )
        return anchor

    def _child(self, rng: np.random.Generator) -> Proposal[C] | None:
        """Crossover of two elites with probability `crossover`, else one elite; then mutation and repair."""
        if not self._elites:  # nothing has a score yet
            return self._sample(rng)
        pool = len(self._elites)
        a, b = rng.choice(pool, size=2, replace=pool < 2).tolist()
        child = self._elites[a][1]
        if rng.random() < self.settings.crossover:
            child = self.space.crossover(child, self._elites[b][1], rng)
        return self._mutant(child, rng)

    def _mutant(self, candidate: C, rng: np.random.Generator) -> Proposal[C]:
        settings = self.settings
        mutated = self.space.mutate(
            candidate, rng, depth=settings.depth_mutation, width=settings.width_mutation, sigma=settings.sigma
        )
        return self._repaired(mutated, rng)

    def _repaired(self, candidate: C, rng: np.random.Generator) -> Proposal[C]:
        repaired = self.space.repair(candidate, rng)
        return Proposal(candidate, feasible=False) if repaired is None else Proposal(repaired)

    def _sample(self, rng: np.random.Generator) -> Proposal[C] | None:
        candidate = self.space.sample(rng)
        return None if candidate is None else Proposal(candidate)
