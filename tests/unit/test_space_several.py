"""Several budgets at once, and budgets that some sub-blocks do not count in."""

from dataclasses import replace

import numpy as np
import pytest
import toys
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.allocation.ranked import Ranked
from tracenas.space import Architecture, Budget, SearchSpace
from tracenas.space.costs import Cost
from tracenas.strategies.solver import solve_space

SEEDS = st.integers(0, 2**32 - 1)
HEADS = Cost("heads", "heads", 3, lambda s, k: k if s.name == "attention" else 0)
BYTES = Cost("bytes", "bytes", 100, lambda s, k: 50 * k + 11 if k else 0)
CHANNELS = Cost("channels", "channels", 0, lambda s, k: k if s.name == "mlp" else 0)


@st.composite
def bounded(draw: st.DrawFn) -> SearchSpace:
    """A space of one to four budgets, each between its smallest and its largest."""
    free = replace(draw(toys.spaces()), budget=None)
    costs = draw(st.lists(st.sampled_from([None, HEADS, BYTES, CHANNELS]), min_size=1, max_size=4, unique=True))
    budgets = []
    for cost in costs:
        alone = replace(free, budget=Budget(1, cost=cost))
        budgets.append(Budget(draw(st.integers(alone.cost(alone.smallest), alone.cost(alone.base))), cost=cost))
    return replace(free, budget=budgets[0], further=tuple(budgets[1:]))


def assert_within(space: SearchSpace, arch: Architecture) -> None:
    """All limits are kept, and what could grow counts in a budget that is reached."""
    assert space.validate(arch) == arch
    over = {
        m.name for m, (_, limit) in zip(space.measures, space.windows, strict=True) if space.costs(arch)[m.name] > limit
    }
    assert not over and space.fits(arch)
    reached = [
        m for m, (lower, _) in zip(space.measures, space.windows, strict=True) if space.costs(arch)[m.name] >= lower
    ]
    for i, layer in enumerate(space.layers):
        for j, (spec, kept) in enumerate(zip(layer.sub_blocks, space.counts(arch)[i], strict=True)):
            wider = [k for k in spec.choices() if k > kept][:1]
            if kept and wider:
                rows = space.counts(arch)
                rows[i][j] = wider[0]
                counted = any(m.of(spec, wider[0]) > m.of(spec, kept) for m in reached)
                assert space.plain or counted or not space.fits(space.build(rows)), (i, spec.name)


@given(bounded(), SEEDS)
@settings(max_examples=150, deadline=None)
def test_all_candidates_meet_all_budgets(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = [a for a in (space.sample(rng) for _ in range(3)) if a is not None]
    if (uniform := space.uniform()) is not None:
        found.append(uniform)
    for arch in found:
        assert_within(space, arch)
        assert space.repair(arch, rng) == arch
        child = space.mutate(space.crossover(arch, found[0], rng), rng, depth=0.7, width=0.7)
        moved = (space.repair(child, rng), space.neighbour(arch, rng), space.trade(arch, rng, depth=0.3))
        for one in (*moved, space.exchange(arch, found[0], rng)):
            if one is not None:
                assert_within(space, one)


@given(bounded(), SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_solver_meets_all_budgets(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rises = {
        (i, s.name): [float(rng.exponential()) * (1 - k / s.units) ** 2 for k in (0, *s.choices())]
        for i, layer in enumerate(space.layers)
        for s in layer.sub_blocks
    }
    assume(space.sample(rng) is not None)
    try:
        found = solve_space(space, rises).architecture
    except UserError:
        assert space.plain  # widths alone may not fill one budget; several have no lower end
        return
    assert space.fits(found)


@pytest.mark.parametrize("allocation", ["adaptive", "global", "global_units", "uniform"])
def test_allocations_meet_all_budgets(allocation: str) -> None:
    free = toys.space(None, layers=6, heads=8, groups=1, channels=256)
    limits = (Budget(int(0.7 * free.parameters(free.base))), Budget(27, cost=HEADS), Budget(1_000, cost=CHANNELS))
    space = replace(free, budget=limits[0], further=limits[1:])
    rng = np.random.default_rng(0)
    slots = [(i, s) for i, layer in enumerate(space.layers) for s in layer.sub_blocks]
    saliency = {(i, s.name): rng.exponential(size=s.units) for i, s in slots}
    ranked = Ranked(space, saliency, dict.fromkeys(saliency, 1), dict.fromkeys(saliency, 1.0))
    arch = ALLOCATIONS.get(allocation)(ranked, None).architecture
    assert_within(space, arch)
    assert space.costs(arch)["heads"] <= 27 and space.costs(arch)["channels"] <= 1_000


def test_what_a_budget_does_not_count_stays_whole() -> None:
    free = toys.space(None, layers=6, heads=8, channels=256)
    space = replace(free, budget=Budget(3 + 6 * 4, cost=HEADS))
    assert not space.plain
    rng = np.random.default_rng(0)
    for arch in (space.uniform(), *(space.sample(rng) for _ in range(5))):
        assert arch is not None
        assert all(layer["channels"] == 256 for layer in arch.layers if not layer.skip)
        assert sum(layer["heads"] for layer in arch.layers) in (23, 24)


def test_budgets_that_contradict_are_refused_with_every_range() -> None:
    free = toys.space(None, layers=4, min_depth=4)
    assert free.parameters(free.smallest) > 10
    with pytest.raises(UserError, match=r"^budget of 5 heads is below the smallest architecture .* feasible: 7 to 35 "):
        replace(free, budget=Budget(free.parameters(free.base)), further=(Budget(5, cost=HEADS),)).check_budget()
