"""The evolutionary search of TraceNAS §3.5 (Algorithm 1, Table 5; decisions 8 and 9)."""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, SearchSettings
from tracenas.strategies.strategy import Strategy

__all__ = ["Evolution"]

C = TypeVar("C", bound=Candidate)


class Evolution(Strategy[C]):
    """Elites carry over; children are crossed and mutated elites, repaired into the budget.

    Generation 0 is an anchor (`init`), `starts` and `seeds`, and mutations of the anchor. A candidate that cannot be
    repaired takes its place with -inf. No candidate is asked for twice.

    Args:
        space: any space; only the operations of `Space` are used.
        settings: sizes, rates and the seed.
        prior: needed for `init: importance`.
        starts: candidates that generation 0 contains besides the anchor; with `init: given` the first of them is the
            anchor, repaired if it needs it.
        seeds: others that it contains, repaired if they need it; the first is the anchor where there are no starts.

    Raises:
        UserError: if there is no prior for `init: importance`, no candidate for `given`, no anchor within the budget,
            or more starts and seeds than places.
    """

    def __init__(
        self,
        space: Space[C],
        settings: SearchSettings,
        *,
        prior: Prior | None = None,
        starts: Sequence[C] = (),
        seeds: Sequence[C] = (),
    ) -> None:
        if settings.init == "importance" and prior is None:
            raise UserError("init 'importance' needs an importance prior; without one: uniform, random")
        if settings.init == "given" and not (starts or seeds):
            raise UserError("init 'given' needs a seed architecture; without one: uniform, random")
        super().__init__(space, settings, prior=prior, starts=starts, seeds=seeds)
        self._elites: list[tuple[float, C]] = []

    def seats(self, settings: SearchSettings) -> int:
        """All but the anchor's."""
        return settings.seats

    @property
    def elites(self) -> list[C]:
        """The parents of the next generation, best first (fewer than asked for if too few have a score)."""
        return [candidate for _, candidate in self._elites]

    def _following(self, draws: Draws[C], rng: np.random.Generator) -> None:
        draws.fill(self.settings.children, lambda: self._child(rng))

    def _learn(self, scored: list[tuple[float, C]]) -> None:
        """Keep the best `elites` of the elites and the batch; the earlier candidate wins a tie."""
        ranked = [*self._elites, *((score, c) for score, c in scored if math.isfinite(score))]
        self._elites = sorted(ranked, key=lambda pair: -pair[0])[: self.settings.elites]

    def _initial(self, draws: Draws[C], rng: np.random.Generator) -> None:
        anchor = self._anchor()
        if anchor is not None:
            draws.offer(Proposal(anchor))
        for start in self._starts:
            draws.offer(Proposal(start))
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
            first = (*self._starts, *self._seeds)[0]
            anchor = self.space.repair(first, np.random.default_rng(self.settings.seed))
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
