"""No search: the uniform architecture, the baseline to beat."""

from typing import TypeVar

import numpy as np

from tracenas.errors import UserError
from tracenas.strategies.draw import Draws
from tracenas.strategies.protocol import Candidate, Proposal
from tracenas.strategies.strategy import Strategy

__all__ = ["Uniform"]

C = TypeVar("C", bound=Candidate)


class Uniform(Strategy[C]):
    """One candidate: equal ratios in every layer, filled up to the budget (decision 7).

    Prior and seeds are not used.

    Raises:
        UserError: when asked, if no uniform architecture lies within the budget.
    """

    planned = 1
    generations = 1

    def _initial(self, draws: Draws[C], rng: np.random.Generator) -> None:
        candidate = self.space.uniform()
        if candidate is None:
            raise UserError("no uniform architecture lies within the budget; widen the tolerance")
        draws.offer(Proposal(candidate))
