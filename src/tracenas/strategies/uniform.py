"""No search: the uniform architecture, the baseline to beat."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from tracenas.errors import UserError
from tracenas.strategies.protocol import Batch, Candidate, Proposal, Space
from tracenas.strategies.settings import Prior, SearchSettings

__all__ = ["Uniform"]

C = TypeVar("C", bound=Candidate)


class Uniform(Generic[C]):
    """One candidate: equal ratios in every layer, filled up to the budget (decision 7).

    Prior and seeds are not used.

    Raises:
        UserError: when asked, if no uniform architecture lies within the budget.
    """

    planned = 1
    generations = 1

    def __init__(
        self, space: Space[C], settings: SearchSettings, *, prior: Prior | None = None, seeds: Sequence[C] = ()
    ) -> None:
        self.space = space
        self.settings = settings
        self._done = False

    def ask(self) -> Batch[C] | None:
        """The uniform architecture, once."""
        if self._done:
            return None
        self._done = True
        candidate = self.space.uniform()
        if candidate is None:
            raise UserError("no uniform architecture lies within the budget; widen the tolerance")
        return Batch(0, (Proposal(candidate),))

    def tell(self, batch: Batch[C], scores: Sequence[float]) -> None:
        """Nothing is learnt."""
