"""Random search, the control of TraceNAS Table 4."""

from typing import TypeVar

from tracenas.strategies.generational import Generational
from tracenas.strategies.protocol import Candidate

__all__ = ["RandomSearch"]

C = TypeVar("C", bound=Candidate)


class RandomSearch(Generational[C]):
    """Distinct random candidates of the budget, in batches of evolution's sizes, so that generations compare.

    The prior is not used; `seeds` come first.
    """
