"""The solver against exhaustive enumeration."""

import itertools

import numpy as np
import pytest

from tracenas.strategies.knapsack import Item, Problem, lagrangian_start, repaired
from tracenas.strategies.solver import solve

pytestmark = pytest.mark.parity


def random_problem(seed: int) -> Problem:
    """2 to 4 blocks of one to three sub-blocks with 2 to 4 levels, one to three budgets, constraints on depth."""
    rng = np.random.default_rng(seed)
    depth, budgets = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    items, room = [], 512
    for block in range(depth):
        for _ in range(int(rng.integers(1, 4))):
            levels = int(rng.integers(2, 5))
            if (room := room // levels) < 1:
                break
            costs = np.sort(rng.exponential(size=levels))[::-1].copy()
            if rng.random() < 0.7:
                costs[-1] = 0.0
            weights = np.cumsum(rng.integers(0 if budgets > 1 else 1, 60, size=(levels, budgets)), axis=0).astype(float)
            weights[0] = 0
            items.append(Item(block, costs * 10 ** rng.uniform(-4, 1), weights, bool(rng.random() < 0.2)))
    stacks = tuple("" if seed % 3 else ("encoder", "decoder")[block * 2 // depth] for block in range(depth))
    most = sum(item.weights[-1] for item in items)
    upper = np.floor(most * rng.uniform(0.3, 1.0, size=budgets))
    lower = np.zeros(budgets) if rng.random() < 0.6 else np.where(np.arange(budgets) == 0, np.floor(upper * 0.8), 0.0)
    protected = frozenset(int(b) for b in np.flatnonzero(rng.random(depth) < 0.2))
    blocks = len({item.block for item in items})
    return Problem(
        tuple(items), lower, upper, stacks, protected, int(rng.integers(1, blocks + 1)), bool(rng.random() < 0.5)
    )


def allowed(problem: Problem, levels: tuple[int, ...]) -> bool:
    """Every constraint, one by one."""
    active: dict[str, int] = {}
    for block, members in problem.members.items():
        bits = [levels[i] > 0 for i in members]
        stack = problem.stacks[block]
        active[stack] = active.get(stack, 0) + any(bits)
        if problem.together and any(bits) != all(bits):
            return False
        if block in problem.protected and not any(bits):
            return False
        if any(problem.items[i].remains and not levels[i] and any(bits) for i in members):
            return False
    return sum(active.values()) >= problem.min_depth and min(active.values()) >= 1 and problem.within(levels)


def exhaustive(problem: Problem) -> float | None:
    every = itertools.product(*(range(len(item.costs)) for item in problem.items))
    return min((problem.cost(levels) for levels in every if allowed(problem, levels)), default=None)


@pytest.mark.parametrize("part", range(10))
def test_equals_exhaustive_enumeration(part: int) -> None:
    """1,000 tables in all."""
    met = 0
    for seed in range(100 * part, 100 * part + 100):
        problem = random_problem(seed)
        best, answer = exhaustive(problem), solve(problem, gap=0.0)
        if best is None:
            assert answer is None, seed
            continue
        met += 1
        assert answer is not None and answer.finished, seed
        assert allowed(problem, answer.levels), seed
        assert answer.cost == pytest.approx(best, rel=1e-9, abs=1e-12), seed
        assert answer.bound <= best * (1 + 1e-6) + 1e-9 and answer.gap < 1e-5, seed
    assert met > 50


def test_the_start_is_feasible_and_its_bound_holds() -> None:
    starts = 0
    for seed in range(200):
        problem = random_problem(seed)
        best = exhaustive(problem)
        if best is None:
            continue
        for price in (0.0, 1e-3, 0.1):
            start = lagrangian_start(problem, np.full(len(problem.upper), price))
            assert start.bound <= best + 1e-9
            if start.levels is not None:
                starts += 1
                assert allowed(problem, start.levels) and problem.cost(start.levels) >= best - 1e-9
    assert starts > 200


def item(block: int, costs: list[float], weights: list[float]) -> Item:
    return Item(block, np.array(costs), np.array(weights)[:, None])


def limited(items: tuple[Item, ...], lower: float, upper: float) -> Problem:
    return Problem(items, np.array([lower]), np.array([upper]), ("",) * (1 + max(i.block for i in items)))


def test_of_the_blocks_that_would_be_skipped_those_stay_that_gain_least() -> None:
    """At a price of 1, skipping the first gains 10 - 9, the second 5 - 1; one of two must stay."""
    problem = limited((item(0, [9, 0], [0, 10]), item(1, [1, 0], [0, 5])), 0, 100)
    start = lagrangian_start(problem, np.array([1.0]))
    assert start.levels == (1, 0) and start.bound == 9 + 1 - 100


def test_repair_goes_down_where_it_costs_least_and_up_where_it_gains_most() -> None:
    """Per weight a step of the first costs 1/10, of the second 3/10."""
    two = (item(0, [9, 6, 5, 4], [0, 10, 20, 30]), item(1, [9, 6, 3, 0], [0, 10, 20, 30]))
    assert repaired(limited(two, 0, 50), [3, 3]) == [2, 3]
    assert repaired(limited(two, 0, 35), [3, 3]) == [1, 2]
    assert repaired(limited(two, 0, 19), [3, 3]) is None  # level 0 is a bypass
    assert repaired(limited(two, 0, 59), [1, 1]) == [2, 3]
    assert repaired(limited(two, 0, 60), [1, 1]) == [3, 3]
    assert repaired(limited(two, 0, 60), [0, 1]) == [0, 3]
    assert repaired(limited(two, 50, 60), [0, 1]) is None
    free = (item(0, [9, 6, 6, 7], [0, 10, 20, 30]),)
    assert repaired(limited(free, 0, 60), [1]) == [1]  # no step up is wanted that gains nothing
    assert repaired(limited(free, 15, 60), [1]) == [2]
    assert repaired(limited(free, 20, 60), [1]) == [2]
    assert repaired(limited(free, 30, 30), [1]) == [3]


def test_time_that_is_up_gives_the_best_so_far() -> None:
    rng = np.random.default_rng(0)
    items = []
    for block in range(60):
        weights = np.cumsum(rng.integers(1, 1000, size=(40, 3)), axis=0).astype(float)
        weights[0] = 0
        items.append(Item(block, np.sort(rng.exponential(size=40))[::-1].copy(), weights))
    upper = np.floor(0.5 * sum(item.weights[-1] for item in items))
    problem = Problem(tuple(items), np.zeros(3), upper, ("",) * 60)
    answer = solve(problem, gap=0.0, time_limit=0.05)
    assert answer is not None and problem.within(answer.levels)
    assert not answer.finished and 0 < answer.gap < 0.2
