"""Equal retention ratios in every sub-block, the rest of the budget spread evenly (`SearchSpace.uniform`)."""

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Allocated, Ranked

__all__ = ["allocate"]


def allocate(ranked: Ranked, gamma: float | None) -> Allocated:
    """The uniform architecture; saliencies only decide which units stay.

    Raises:
        UserError: if none lies within the budget.
    """
    architecture = ranked.space.uniform()
    if architecture is None:
        raise UserError("no uniform architecture lies within the budget; widen the tolerance")
    return Allocated(architecture)
