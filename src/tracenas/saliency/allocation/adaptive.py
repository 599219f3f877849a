"""Adaptive allocation (NIRVANA, arXiv:2509.14230): a threshold over all attention units and one over all MLP units.

γ ties the two: f_mlp = γ · f_attn, f the share of a module's units that goes. With A and M the parameters that go
with attention and MLP units and s the sparsity of both together, f_attn = s (A + M) / (A + γ M).

γ = 1 gives both the same unit sparsity. Published values are 3.36 for Llama-3.1-8B and 3.0 for Llama-3.2-3B. Default:

    γ = 0.1625 · √(parameters of an attention unit / parameters of an MLP unit), at least 1.

The ratio is 426.7 for a KV group of Llama-3.1-8B and 341.3 for one of Llama-3.2-3B, so this gives 3.36 and 3.00: the
square root is what the ratio of the two published values follows (3.36 / 3.0 = 1.12, √(426.7 / 341.3) = 1.118), the
factor is fitted to them. The coarser an attention unit is, the more of the removal is left to the MLPs.

Widths are rounded up to what is feasible, the smallest feasible one at least (one KV group). Both thresholds lie where
f_attn and f_mlp of the units have gone after that, not before, so that γ holds to the unit; f_attn is the lowest that
meets the budget, and what is left of the budget goes to the most salient units.
"""

import math
from collections.abc import Sequence

from tracenas.errors import UserError
from tracenas.saliency.allocation.ranked import Allocated, Ranked, UnitPool
from tracenas.saliency.allocation.threshold import too_small
from tracenas.saliency.allocation.within import PoolShares, at_shares, lowest_level, within_budget
from tracenas.space.sub_block import SubBlockSpec

__all__ = ["allocate", "attention_sparsity", "default_gamma", "feasible_gammas"]

_FACTOR = 0.1625
_LARGEST = 1e6


def default_gamma(specs: Sequence[SubBlockSpec]) -> float:
    """γ from the mean parameters of attention units and MLP units.

    Args:
        specs: the model's sub-blocks; those called `mlp` are the MLPs.
    """
    means = [
        sum(s.units * s.parameters_per_unit for s in module) / sum(s.units for s in module) if module else 0.0
        for module in ([s for s in specs if (s.name == "mlp") == mlp and s.units] for mlp in (False, True))
    ]
    return max(1.0, _FACTOR * math.sqrt(means[0] / means[1])) if means[1] else 1.0


def attention_sparsity(sparsity: float, attention: float, mlp: float, gamma: float) -> float:
    """f_attn = s (A + M) / (A + γ M); f_mlp is γ times that."""
    return sparsity * (attention + mlp) / (attention + gamma * mlp)


def allocate(ranked: Ranked, gamma: float | None) -> Allocated:
    """The architecture that the two thresholds give.

    Raises:
        UserError: for a γ at which the budget is infeasible, with the range that works; for a budget that needs
            whole blocks to go.
    """
    space = ranked.space
    slots = ranked.slots()
    pools = [UnitPool(ranked, [t for t in slots if (t[2].name == "mlp") == mlp]) for mlp in (False, True)]
    default = default_gamma([s for *_, s in slots])
    chosen = default if gamma is None else gamma
    if lowest_level(space, pools, _shares(pools, chosen)) is None:
        low, high = feasible_gammas(ranked, pools)
        if gamma is not None:
            upper = f"to {high:.2f}" if high < _LARGEST else "or more"
            which = "the MLPs" if gamma > high else "attention"
            raise UserError(
                f"gamma {gamma:g}: {which} would have to lose more than all that may go for "
                f"{space.measures[0].said(space.window[1])}; accepted for this budget: {low:.2f} {upper}"
            )
        chosen = math.sqrt(_centre(pools) * (high if default > high else low))
    shares = _shares(pools, chosen)
    level = lowest_level(space, pools, shares)
    assert level is not None
    architecture = within_budget(
        space, pools, shares(level), lambda s, gained: float(gained.mean()) / s.parameters_per_unit
    )
    shares_kept = [_kept(pool, space.counts(architecture)) for pool in pools]
    attention, mlp = (sum(s.units * s.parameters_per_unit for *_, s in pool.slots) for pool in pools)
    kept = space.window[1] if space.measures[0].name == "params" else space.parameters(architecture)
    sparsity = (space.parameters(space.base) - kept) / (attention + mlp)
    facts = {
        "gamma": chosen,
        "gamma_default": default,
        "attention_sparsity_by_formula": attention_sparsity(sparsity, attention, mlp, chosen),
        "attention_sparsity": 1 - shares_kept[0],
        "mlp_sparsity": 1 - shares_kept[1],
    }
    return Allocated(architecture, facts)


def feasible_gammas(ranked: Ranked, pools: Sequence[UnitPool]) -> tuple[float, float]:
    """The smallest and the largest γ that the budget allows, rounded inwards to 0.01 (1e6: any).

    A larger γ than the one at which both modules run out together exhausts the MLPs first, a smaller one attention:
    the feasible values are an interval around it.

    Raises:
        UserError: if not even that one meets the budget.
    """
    space = ranked.space

    def feasible(gamma: float) -> bool:
        return space.fits(at_shares(space, pools, _shares(pools, gamma)(1.0)))

    centre = _centre(pools)
    if not feasible(centre):
        raise too_small(ranked)
    bounds = []
    for extreme in (1 / _LARGEST, _LARGEST):
        if feasible(extreme):
            bounds.append(extreme)
            continue
        inside, outside = math.log(centre), math.log(extreme)
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if feasible(math.exp(middle)) else (inside, middle)
        bounds.append(math.exp(inside))
    low, high = bounds
    return math.ceil(100 * low) / 100, high if high >= _LARGEST else math.floor(100 * high) / 100


def _centre(pools: Sequence[UnitPool]) -> float:
    """γ at which attention and MLPs have lost all that can go at the same time."""
    attention, mlp = (pool.most for pool in pools)
    return mlp / attention if attention and mlp else 1.0


def _shares(pools: Sequence[UnitPool], gamma: float) -> PoolShares:
    """Both thresholds by level; at level 1 the first of the pools has lost all that can go."""
    attention, mlp = pools
    top = min(attention.most, mlp.most / gamma)

    def shares(level: float) -> tuple[float, float]:
        return attention.threshold(level * top), mlp.threshold(level * top * gamma)

    return shares


def _kept(pool: UnitPool, counts: Sequence[Sequence[int]]) -> float:
    """Units kept / units of a pool."""
    total = sum(s.units for *_, s in pool.slots)
    return sum(counts[i][j] for i, j, _ in pool.slots) / total if total else 1.0
