"""One threshold over all units of the model: what lies below it goes, wherever it is.

`global`: saliency per parameter of the unit, so that attention and MLP units compare (an option of LLM-Pruner,
arXiv:2305.11627, whose own results prune block by block). `global_units`: the saliency as it is, for saliencies that
are comparable between sub-blocks already (FLAP's standardised ones, arXiv:2312.11983, "AL-AM").

Every block keeps the smallest feasible width at least.
"""

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Allocated, Ranked, UnitPool
from tracenas.saliency.allocation.within import lowest_level, within_budget

__all__ = ["per_parameter", "per_unit", "too_small"]


def per_parameter(ranked: Ranked, gamma: float | None) -> Allocated:
    """One threshold on the saliency per parameter."""
    return _allocate(ranked, divide=True)


def per_unit(ranked: Ranked, gamma: float | None) -> Allocated:
    """One threshold on the saliency of a unit as it is."""
    return _allocate(ranked, divide=False)


def _allocate(ranked: Ranked, *, divide: bool) -> Allocated:
    space = ranked.space
    pools = [UnitPool(ranked, ranked.slots(), divide=divide)]
    level = lowest_level(space, pools, lambda level: [level])
    if level is None:
        raise too_small(ranked)
    return Allocated(within_budget(space, pools, [level], lambda _, gained: float(gained.mean())))


def too_small(ranked: Ranked) -> UserError:
    """For a budget below every block's smallest width."""
    space = ranked.space
    widths = [[s.choices()[0] if s.units else 0 for s in layer.sub_blocks] for layer in space.layers]
    narrow = space.build(widths)
    smallest, base, limit, measure = next(
        (cost, measure.total(space.layers, space.base), limit, measure)
        for measure, (_, limit) in zip(space.measures, space.windows, strict=True)
        if (cost := measure.total(space.layers, narrow)) > limit
    )
    return UserError(
        f"budget of {measure.said(limit)}: this allocation keeps every block, so {measure.number(smallest)} are needed "
        f"({100 * smallest / base:.1f}%); choose a larger one, or allocation uniform or depth, which drop blocks"
    )
