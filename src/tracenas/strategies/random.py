"""Random search, the control of TraceNAS Table 4."""

from typing import TypeVar

from tracenas.strategies.protocol import Candidate
from tracenas.strategies.strategy import Strategy

__all__ = ["RandomSearch"]

C = TypeVar("C", bound=Candidate)


class RandomSearch(Strategy[C]):
    """Distinct random candidates of the budget, in batches of evolution's sizes, so that generations compare.

    The prior is not used; `seeds` come first.
    """
