"""Attention untouched, one width for all MLPs: the largest within the budget.

The plainest shape that there is, and a stock configuration: the baseline of every comparison. The lower end of the
budget's window does not apply; MLPs that are narrower in the base stay as they are.
"""

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Allocated, Ranked

__all__ = ["allocate"]


def allocate(ranked: Ranked, gamma: float | None) -> Allocated:
    """The architecture; saliencies only decide which channels stay.

    Raises:
        UserError: if the budget asks for narrower MLPs than the smallest, or for less attention.
    """
    space = ranked.space
    slots = [(i, j, s, ranked.groups[i, s.name]) for i, j, s in ranked.slots() if s.name == "mlp"]
    widths = sorted({choice // parts for _, _, spec, parts in slots for choice in spec.choices()})
    for width in reversed(widths):  # of an expert, where there are experts
        rows = space.counts(space.base)
        for i, j, spec, parts in slots:
            rows[i][j] = spec.floor(width * parts)
        if space.fits(built := space.build(rows)):
            return Allocated(built, {"mlp_width": width})
    limit, least = next(
        (measure.said(limit), measure.number(cost) if widths else "all of them")
        for measure, (_, limit) in zip(space.measures, space.windows, strict=True)
        if (cost := measure.total(space.layers, built if widths else space.base)) > limit
    )
    raise UserError(f"budget of {limit}: with attention untouched, MLPs of the smallest width leave {least}")
