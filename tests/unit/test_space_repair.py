from dataclasses import replace

import numpy as np
import pytest
import toys
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.space import Budget, LayerSpec, SearchSpace, SubBlockSpec
from tracenas.space.repair import spread

SEEDS = st.integers(0, 2**32 - 1)


@given(toys.spaces(), SEEDS)
@settings(max_examples=150, deadline=None)
def test_every_candidate_meets_budget_and_depth_constraints(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    population = [a for a in (space.sample(rng) for _ in range(3)) if a is not None]
    if (uniform := space.uniform()) is not None:
        population.append(uniform)
    for a in population:
        toys.assert_meets(space, a)
        child = space.mutate(space.crossover(a, population[0], rng), rng, depth=0.7, width=0.7)
        repaired = space.repair(child, rng)
        if repaired is not None:
            toys.assert_meets(space, repaired)


@given(toys.spaces(), SEEDS)
@settings(max_examples=80, deadline=None)
def test_budgets_that_widths_alone_can_meet_are_met(space: SearchSpace, seed: int) -> None:
    """Where some choice of widths costs what the window asks for, uniform exists and a draw seldom fails."""
    assert space.budget is not None
    narrow = [[s.choices()[0] for s in layer.sub_blocks] for layer in space.layers]
    limit = max(space.budget.limit, space.cost(space.build(narrow)))
    space = replace(space, budget=Budget(limit))
    reachable = {space.outside}
    for table in (table for row in space.tables for table in row):
        reachable = {have + more for have in reachable for more in table}
        assume(len(reachable) < 20_000)
    assume(any(space.window[0] <= cost <= limit for cost in reachable))
    space.check_budget()
    uniform = space.uniform()
    assert uniform is not None
    assert not any(layer.skip for layer in uniform.layers)
    rng = np.random.default_rng(seed)
    assert any(space.sample(rng) is not None for _ in range(21))


@given(toys.spaces(), SEEDS)
@settings(max_examples=50, deadline=None)
def test_what_meets_the_budget_is_left_alone(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate = space.sample(rng)
    assume(candidate is not None)
    assert candidate is not None
    assert space.repair(candidate, rng) == candidate


@given(toys.spaces(), SEEDS)
@settings(max_examples=50, deadline=None)
def test_repair_depends_on_the_generators_seed_only(space: SearchSpace, seed: int) -> None:
    one = space.repair(space.base, np.random.default_rng(seed))
    assert one == space.repair(space.base, np.random.default_rng(seed))


@given(toys.spaces())
@settings(max_examples=80, deadline=None)
def test_uniform_is_filled(space: SearchSpace) -> None:
    uniform = space.uniform()
    assume(uniform is not None)
    assert uniform is not None
    room = space.window[1] - space.cost(uniform)
    steps = [
        table[at + 1] - table[at]
        for layer, row, tables in zip(space.layers, space.counts(uniform), space.tables, strict=True)
        for spec, k, table in zip(layer.sub_blocks, row, tables, strict=True)
        if k and (at := spec.position(k)) + 1 < len(table)
    ]
    assert all(step > room for step in steps)


def test_uniform_is_even() -> None:
    space = toys.space(0.6, layers=12, channels=1024)
    uniform = space.uniform()
    assert uniform is not None
    for key, quantum in (("heads", 1), ("channels", 32)):
        kept = [layer[key] for layer in uniform.layers]
        assert max(kept) - min(kept) <= quantum
    ratios = np.array(space.ratios(uniform))
    assert abs(ratios[:, 0].mean() - ratios[:, 1].mean()) < 1 / 8


def test_uniform_at_the_whole_budget_is_the_base() -> None:
    space = toys.space(1.0)
    assert space.uniform() == space.base
    assert toys.space(None).uniform() == space.base


def test_repair_moves_as_few_quanta_as_needed() -> None:
    """From the base down, the last move is the one that enters the window: undoing any one leaves it."""
    space = toys.space(0.7, layers=6, channels=512)
    for seed in range(10):
        repaired = space.repair(space.base, np.random.default_rng(seed))
        assert repaired is not None
        assert not any(layer.skip for layer in repaired.layers)
        largest = max(table[-1] - table[-2] for row in space.tables for table in row)
        assert space.cost(repaired) > space.window[1] - largest


def test_repair_keeps_the_shape_of_the_candidate() -> None:
    space = toys.space(0.5, layers=4, heads=16, channels=2048)
    rows = [[16, 512], [4, 2048], [16, 512], [4, 2048]]
    for seed in range(5):
        repaired = space.repair(space.build(rows), np.random.default_rng(seed))
        assert repaired is not None
        heads = [layer["heads"] for layer in repaired.layers]
        channels = [layer["channels"] for layer in repaired.layers]
        assert min(heads[0], heads[2]) > max(heads[1], heads[3])
        assert min(channels[1], channels[3]) > max(channels[0], channels[2])


def test_coarse_sub_blocks_jump_over_the_window_and_fine_ones_come_back() -> None:
    """Heads are larger than the window and the only thing left to remove; the channels give the rest back."""
    coarse = SubBlockSpec("attention", "heads", 8, parameters_per_unit=1000)
    fine = SubBlockSpec("mlp", "channels", 64, parameters_per_unit=10)
    space = SearchSpace((LayerSpec((coarse, fine)),) * 2, 0, Budget(14_500, tolerance=0.001))
    start = space.build([[8, 1], [8, 1]])
    for seed in range(5):
        repaired = space.repair(start, np.random.default_rng(seed))
        assert repaired is not None
        toys.assert_meets(space, repaired)
        assert not any(layer.skip for layer in repaired.layers)


def test_blocks_go_only_where_widths_cannot_reach_the_window() -> None:
    shallow = toys.space(0.12, layers=8)
    rng = np.random.default_rng(0)
    repaired = shallow.repair(shallow.base, rng)
    assert repaired is not None
    assert sum(layer.skip for layer in repaired.layers) > 0
    wide = toys.space(0.95, layers=8)
    one_block = wide.build([[1, 32]] + [[0, 0]] * 7)
    grown = wide.repair(one_block, rng)
    assert grown is not None
    assert not any(layer.skip for layer in grown.layers)


def test_spread_is_an_even_permutation() -> None:
    for n in (1, 2, 5, 8, 33):
        assert sorted(spread(n)) == list(range(n))
    assert spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_window_is_widened_to_the_smallest_move() -> None:
    fine = toys.space(0.6, layers=8, channels=4096)
    assert fine.budget is not None
    assert fine.window == (fine.budget.limit - fine.budget.limit // 100, fine.budget.limit)
    coarse = toys.space(0.6, layers=1, outside=0, channels=64)
    assert coarse.window[1] - coarse.window[0] == min(4 * 64 * 8, 3 * 64 * 32)
    no_widths = SearchSpace(
        (LayerSpec((SubBlockSpec("mlp", "channels", 1, parameters_per_unit=7),)),) * 4, 0, Budget(20)
    )
    assert no_widths.window == (13, 20)
    assert no_widths.uniform() is not None


def test_infeasible_budgets_are_refused_with_the_feasible_range() -> None:
    space = toys.space(None, layers=4, min_depth=2)
    low, high = space.cost(space.smallest), space.cost(space.base)
    assert sum(not layer.skip for layer in space.smallest.layers) == 2
    with pytest.raises(UserError, match=rf"feasible: {low:,} to {high:,}"):
        replace(space, budget=Budget(low - 1)).check_budget()
    replace(space, budget=Budget(low)).check_budget()
    space.check_budget()


def test_smallest_keeps_the_protected_blocks() -> None:
    space = toys.space(None, layers=4, keep_layers=frozenset({1, 3}))
    assert [layer.skip for layer in space.smallest.layers] == [True, False, True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "layer"}, "accepted: block, sublayer"),
        ({"min_depth": 0}, "accepted: 1 to 8"),
        ({"min_depth": 9}, "accepted: 1 to 8"),
        ({"keep_layers": frozenset({8})}, "accepted: -8 to 7"),
    ],
)
def test_wrong_space_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        toys.space(None, **options)
