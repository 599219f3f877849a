"""A search strategy, asked and told in turn; what all of them have in common."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Batch, Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, SearchSettings

__all__ = ["Strategy", "feasible"]

C = TypeVar("C", bound=Candidate)


def feasible(candidate: C | None) -> Proposal[C] | None:
    """The proposal of a candidate, if there is one."""
    return None if candidate is None else Proposal(candidate)


class Strategy(Generic[C]):
    """Where candidates come from, in batches of the sizes of an evolution's generations; no candidate comes twice.

    A strategy is deterministic: a generation is drawn from (seed, generation) and the scores that it was told, so a run
    is resumed by telling it the recorded ones.

    Args:
        prior: for strategies that begin with it.
        starts: candidates that generation 0 contains as they are.
        seeds: others that it contains, repaired if they need it.

    Raises:
        UserError: if there are more of both than places for them.
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
        if (count := len(starts) + len(seeds)) > (places := self.seats(settings)):
            raise UserError(f"{count} seed architectures for {places} places in the initial population")
        self.space = space
        self.settings = settings
        self._prior = prior
        self._starts = tuple(starts)
        self._seeds = tuple(seeds)
        self._seen: set[str] = set()
        self._generation = 0
        self._awaits_scores = False

    def seats(self, settings: SearchSettings) -> int:
        """Places of generation 0 that starts and seeds can take."""
        return settings.population

    @property
    def planned(self) -> int:
        """Evaluations at most."""
        return self.settings.planned

    @property
    def generations(self) -> int:
        """Batches in all."""
        return self.settings.iterations

    @property
    def over(self) -> bool:
        """Whether there is no further generation."""
        return self._generation >= self.generations

    def ask(self) -> Batch[C] | None:
        """The next generation's new candidates; None at the end."""
        if self._awaits_scores:
            raise RuntimeError(f"generation {self._generation} was asked for and not told")
        if self.over:
            return None
        rng = np.random.default_rng([self.settings.seed, self._generation])
        draws: Draws[C] = Draws(self._seen, self.settings.redraws)
        if self._generation == 0:
            self._initial(draws, rng)
        else:
            self._following(draws, rng)
        self._awaits_scores = True
        return draws.batch(self._generation)

    def tell(self, batch: Batch[C], scores: Sequence[float]) -> None:
        """The scores of what was asked for."""
        if not self._awaits_scores or batch.generation != self._generation:
            raise RuntimeError(f"told generation {batch.generation}, which was not asked for")
        self._learn(list(zip(scores, (p.candidate for p in batch.proposals), strict=True)))
        self._generation += 1
        self._awaits_scores = False

    def _initial(self, draws: Draws[C], rng: np.random.Generator) -> None:
        """Generation 0: starts and seeds, and random candidates."""
        for start in self._starts:
            draws.offer(Proposal(start))
        for seed in self._seeds:
            draws.offer(feasible(self.space.repair(seed, rng)))
        draws.fill(self.settings.population, lambda: self._sample(rng))

    def _following(self, draws: Draws[C], rng: np.random.Generator) -> None:
        """A later generation: random candidates."""
        draws.fill(self.settings.children, lambda: self._sample(rng))

    def _learn(self, scored: list[tuple[float, C]]) -> None:
        """Take note of a generation's scores, in order."""

    def _sample(self, rng: np.random.Generator) -> Proposal[C] | None:
        return feasible(self.space.sample(rng))
