"""Architectures that the solver finds in spaces."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import assert_meets, space, spaces

from tracenas.errors import UserError
from tracenas.space import Budget, SearchSpace
from tracenas.space.costs import Cost, sub_blocks
from tracenas.space.exclusion import kept_whole
from tracenas.strategies.knapsack import by_price
from tracenas.strategies.solver import GAP, problem_in_space, solve_space


def convex(search_space: SearchSpace, seed: int = 0) -> dict[tuple[int, str], list[float]]:
    """Costs that rise faster and faster as units go."""
    rng = np.random.default_rng(seed)
    return {
        (i, s.name): [float(rng.exponential()) * (1 - k / s.units) ** 2 for k in (0, *s.choices())]
        for i, layer in enumerate(search_space.layers)
        for s in layer.sub_blocks
        if s.units
    }


@settings(max_examples=60, deadline=None)
@given(search_space=spaces(), seed=st.integers(0, 99))
def test_spaces_keep_their_constraints(search_space: SearchSpace, seed: int) -> None:
    rises = convex(search_space, seed)
    try:
        found = solve_space(search_space, rises)
    except UserError:
        assert not search_space.cost(search_space.smallest) <= search_space.window[0]
        return
    assert_meets(search_space, found.architecture)
    assert found.finished and found.gap <= GAP


def test_depth_alone_fills_the_budget_beside_what_is_excluded() -> None:
    """Two blocks of one width each, the first attention kept: 8,704 is the most within 10,817, 2,113 below it."""
    whole = space(None, layers=2, outside=0, channels=23, heads=1, granularity="sublayer")
    kept = frozenset({(0, "attention")})
    whole = replace(whole, layers=kept_whole(whole.layers, kept), excluded=kept, budget=Budget(10_817))
    found = solve_space(whole, convex(whole))
    assert_meets(whole, found.architecture)
    assert whole.cost(found.architecture) == whole.window[0] == 8_704


def test_the_budget_is_reached_where_fine_moves_cannot_bridge_a_coarse_one() -> None:
    """Four heads come at once, and channels are 48 parameters each; 3,040 is the most within 3,151."""
    whole = space(None, layers=1, outside=0, channels=20, heads=8, groups=4, quantum=1, hidden=16)
    costs = sorted({whole.cost(whole.build([[h, c]])) for h in (4, 8) for c in range(1, 21)})
    gap, limit = max(itertools.pairwise(costs), key=lambda pair: pair[1] - pair[0])
    whole = replace(whole, budget=Budget(limit - 1, tolerance=0.0))
    assert whole.window[0] <= gap < whole.window[1] < limit
    assert_meets(whole, solve_space(whole, convex(whole)).architecture)
    sampled = whole.sample(np.random.default_rng(0))
    assert sampled is not None
    assert_meets(whole, sampled)


def test_a_larger_space_within_the_gap_and_better_than_uniform() -> None:
    whole = space(0.6, layers=30, channels=1536, heads=9, groups=3, hidden=576)
    rises = convex(whole)
    found = solve_space(whole, rises)
    assert_meets(whole, found.architecture)
    assert found.finished and 0 <= found.gap <= GAP and found.bound <= found.rise

    def rise(arch: Any) -> float:
        return sum(rises[i, s.name][(0, *s.choices()).index(k)] for i, s, k in sub_blocks(whole.layers, arch))

    assert rise(found.architecture) == pytest.approx(found.rise)
    uniform = whole.uniform()
    assert uniform is not None and found.rise < 0.9 * rise(uniform)


def test_two_budgets_at_once() -> None:
    """Parameters and the KV cache: what the second forbids, the first alone would take."""
    whole = space(0.7, layers=6)
    rises = {
        key: [0.0 if key[1] == "attention" and k else c for k, c in enumerate(costs)]
        for key, costs in convex(whole).items()
    }
    alone = solve_space(whole, rises, gap=0.0)
    heads = Budget(30, cost=Cost("heads", "heads", 0, lambda s, k: k if s.name == "attention" else 0))
    both = replace(whole, further=(heads,))
    costly = {key: [c * (1 if key[1] == "mlp" else 50) for c in costs] for key, costs in convex(whole).items()}
    free, tight = solve_space(whole, costly, gap=0.0), solve_space(both, costly, gap=0.0)
    count = lambda found: sum(layer["heads"] for layer in found.architecture.layers)  # noqa: E731
    assert count(free) > 30 >= count(tight) and tight.rise > free.rise
    assert alone.rise <= free.rise


def test_prices_of_several_budgets_are_near_the_solver_where_one_of_them_is_slack_in_mlps() -> None:
    """Priced all alike, what the cache's budget does not count would be narrowed with it."""
    whole = space(0.75, layers=12, channels=1024)
    cache = Cost("heads", "heads", 0, lambda s, k: k if s.name == "attention" else 0)
    for seed in range(4):
        both = replace(whole, further=(Budget(60, cost=cache),))
        problem = problem_in_space(both, convex(both, seed))
        levels = by_price(problem)
        assert levels is not None and problem.within(levels)
        best = solve_space(both, convex(both, seed)).rise
        assert problem.cost(levels) <= 1.1 * best


def test_what_a_deployment_keeps_is_not_bypassed_alone() -> None:
    cut = space(0.5, layers=6, granularity="sublayer")
    rises = {key: [0.0 if key[1] == "attention" else 5.0, *costs[1:]] for key, costs in convex(cut).items()}
    free, kept = (solve_space(s, rises) for s in (cut, replace(cut, keeps=frozenset({"attention"}))))
    assert any(not la["heads"] and la["channels"] for la in free.architecture.layers)
    assert not any(not la["heads"] and la["channels"] for la in kept.architecture.layers)


def test_budgets_that_nothing_meets_are_refused() -> None:
    whole = space(0.5, layers=4)
    with pytest.raises(UserError, match=r"no combination of widths within 100 parameters was found"):
        solve_space(replace(whole, budget=Budget(100)), convex(whole))
    with pytest.raises(ValueError, match="9 levels"):
        problem_in_space(whole, {key: costs[1:] for key, costs in convex(whole).items()})
