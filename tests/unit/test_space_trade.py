"""Local moves: few sub-blocks differ, all others stay as they are, budgets hold."""

import numpy as np
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.space import Architecture, SearchSpace
from tracenas.space.trade import MOST
from tracenas.space.widths import Widths


def differing(space: SearchSpace, one: Architecture, other: Architecture) -> list[tuple[int, int]]:
    """Sub-blocks whose widths are not the same."""
    pairs = zip(space.counts(one), space.counts(other), strict=True)
    return [(i, j) for i, (a, b) in enumerate(pairs) for j, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]


def room_left(space: SearchSpace, arch: Architecture, slots: list[tuple[int, int]]) -> bool:
    """Whether one of these sub-blocks, present and not at its full width, could be a quantum wider."""
    counts = space.counts(arch)
    for i, j in slots:
        choices, costs = space.layers[i].sub_blocks[j].choices(), space.tables[i][j]
        if counts[i][j] and counts[i][j] != choices[-1]:
            at = choices.index(counts[i][j])
            if space.cost(arch) + costs[at + 1] - costs[at] <= space.window[1]:
                return True
    return False


@settings(deadline=None, max_examples=150)
@given(toys.spaces(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0]))
def test_a_trade_meets_the_budget_and_moves_at_most_four(space: SearchSpace, seed: int, depth: float) -> None:
    rng = np.random.default_rng(seed)
    start = space.sample(rng)
    if start is None:
        return
    child = space.trade(start, rng, depth=depth)
    if child is None:
        return
    toys.assert_meets(space, child)
    moved = differing(space, start, child)
    assert 1 <= len(moved) <= MOST
    assert not room_left(space, child, moved)


@settings(deadline=None, max_examples=100)
@given(toys.spaces(), st.integers(0, 2**32 - 1))
def test_depth_stays_where_no_flip_is_asked_for(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = space.sample(rng)
    child = None if start is None else space.trade(start, rng, depth=0.0)
    if start is None or child is None:
        return
    present = [[k > 0 for k in row] for row in space.counts(start)]
    assert [[k > 0 for k in row] for row in space.counts(child)] == present


@settings(deadline=None, max_examples=100)
@given(toys.spaces(), st.integers(0, 2**32 - 1))
def test_an_exchange_has_blocks_of_both_but_for_four_sub_blocks(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = space.sample(rng), space.sample(rng)
    child = None if a is None or b is None else space.exchange(a, b, rng)
    if a is None or b is None or child is None:
        return
    toys.assert_meets(space, child)
    of_one, of_other = set(differing(space, a, child)), set(differing(space, b, child))
    assert len(of_one & of_other) <= MOST


def test_flips_and_trades_are_found_in_a_roomy_space() -> None:
    space = toys.space(0.6, layers=12, granularity="sublayer")
    start = space.uniform()
    assert start is not None
    rng = np.random.default_rng(0)
    sizes, flips = set(), 0
    for _ in range(100):
        traded = space.trade(start, rng)
        flipped = space.trade(start, rng, depth=1.0)
        assert traded is not None and flipped is not None
        sizes.add(len(differing(space, start, traded)))
        flips += any(not k for row in space.counts(flipped) for k in row)
    assert sizes == {2, 3, 4}
    assert flips == 100


def test_larger_strengths_move_further() -> None:
    space = toys.space(0.6, layers=12, quantum=1)
    start = space.uniform()
    assert start is not None

    def distance(sigma: float) -> float:
        rng = np.random.default_rng(0)
        children = [space.trade(start, rng, sigma=sigma) for _ in range(60)]
        assert all(children)
        return float(
            np.mean([np.abs(np.array(space.ratios(c)) - np.array(space.ratios(start))).sum() for c in children])
        )  # type: ignore[arg-type]

    assert distance(0.0) < distance(0.1) < distance(0.6)


def test_every_budget_holds_when_there_are_several() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        weights = [np.cumsum(rng.integers(1, 9, size=(6, 2)), axis=0).astype(float) for _ in range(4)]
        at = rng.integers(0, 6, size=4).tolist()
        room = np.sum([w[rng.integers(2, 6)] for w in weights], axis=0)
        few = Widths(weights, at, room)
        few.step(0, 3)
        few.shrink([1, 2, 3])
        few.shrink([0])
        few.grow([0, 1, 2, 3])
        total = np.sum([w[place] for w, place in zip(weights, few.at, strict=True)], axis=0)
        np.testing.assert_allclose(few.total, total)
        assert few.fits and (total <= room).all()
        for member, w in enumerate(weights):
            if few.at[member] + 1 < len(w):
                assert (total + w[few.at[member] + 1] - w[few.at[member]] > room).any()


def test_nothing_is_moved_where_one_sub_block_alone_has_a_choice() -> None:
    space = toys.space(0.9, layers=1, heads=1)
    start = space.uniform()
    assert start is not None
    assert space.trade(start, np.random.default_rng(0)) is None
