"""Random search, the control of TraceNAS Table 4."""

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Batch, Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, Settings

__all__ = ["RandomSearch"]

C = TypeVar("C", bound=Candidate)


class RandomSearch(Generic[C]):
    """Distinct random candidates of the budget, in batches of evolution's sizes, so that generations compare.

    The prior is not used; `seeds` come first.

    Raises:
        UserError: if there are more seeds than places in the first batch.
    """

    def __init__(
        self, space: Space[C], settings: Settings, *, prior: Prior | None = None, seeds: Sequence[C] = ()
    ) -> None:
        self.space = space
        self.settings = settings
        if len(seeds) > settings.population:
            raise UserError(f"{len(seeds)} seed architectures for {settings.population} places")
        self._seeds = tuple(seeds)
        self._seen: set[str] = set()
        self._generation = 0

    @property
    def planned(self) -> int:
        """Evaluations at most, as many as evolution's."""
        return self.settings.planned

    @property
    def generations(self) -> int:
        """Batches in all."""
        return self.settings.iterations

    def ask(self) -> Batch[C] | None:
        """The next batch."""
        if self._generation >= self.settings.iterations:
            return None
        rng = np.random.default_rng([self.settings.seed, self._generation])
        draws: Draws[C] = Draws(self._seen, self.settings.redraws)
        if self._generation == 0:
            for seed in self._seeds:
                draws.offer(_proposal(self.space.repair(seed, rng)))
        draws.fill(self.settings.size(self._generation), lambda: _proposal(self.space.sample(rng)))
        self._generation += 1
        return draws.batch(self._generation - 1)

    def tell(self, batch: Batch[C], scores: Sequence[float]) -> None:
        """Scores do not matter here."""


def _proposal(candidate: C | None) -> Proposal[C] | None:
    return None if candidate is None else Proposal(candidate)
