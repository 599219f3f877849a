"""Random search, the control of TraceNAS Table 4."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tracenas.strategies.draw import Draws
from tracenas.strategies.generational import Generational
from tracenas.strategies.protocol import Candidate, Space
from tracenas.strategies.settings import Prior, SearchSettings

__all__ = ["RandomSearch"]

C = TypeVar("C", bound=Candidate)


class RandomSearch(Generational[C]):
    """Distinct random candidates of the budget, in batches of evolution's sizes, so that generations compare.

    The prior is not used; `seeds` come first.

    Raises:
        UserError: if there are more seeds than places in the first batch.
    """

    def __init__(
        self, space: Space[C], settings: SearchSettings, *, prior: Prior | None = None, seeds: Sequence[C] = ()
    ) -> None:
        super().__init__(space, settings, seeds, settings.population)

    def _following(self, draws: Draws[C], rng: np.random.Generator) -> None:
        draws.fill(self.settings.children, lambda: self._sample(rng))
