import numpy as np
import pytest
import toys

from tracenas.space import Architecture, SearchSpace


def masks(arch: Architecture) -> list[bool]:
    return [layer.skip for layer in arch.layers]


def runs(bits: list[bool]) -> int:
    """Maximal runs of True."""
    return sum(b and not (i and bits[i - 1]) for i, b in enumerate(bits))


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_crossover_takes_one_contiguous_range_of_blocks_from_b(granularity: str) -> None:
    space = toys.space(None, layers=7, granularity=granularity)
    empty = space.build([[0, 0]] * 7)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(400):
        taken = masks(space.crossover(space.base, empty, rng))
        assert runs(taken) == 1
        seen.add(tuple(taken))
        kept = masks(space.crossover(empty, space.base, rng))
        assert runs([not skip for skip in kept]) == 1
    assert len(seen) == 7 * 8 // 2  # every range occurs


def test_crossover_interpolates_widths_between_20_and_80_percent() -> None:
    space = toys.space(None, layers=4, channels=2000, quantum=1, heads=1)
    a, b = space.build([[1, 1000]] * 4), space.build([[1, 2000]] * 4)
    rng = np.random.default_rng(1)
    beta = np.array([2 - layer["channels"] / 1000 for _ in range(300) for layer in space.crossover(a, b, rng).layers])
    assert beta.min() >= 0.2 - 1e-3
    assert beta.max() <= 0.8 + 1e-3
    assert beta.min() < 0.22
    assert beta.max() > 0.78
    assert abs(beta.mean() - 0.5) < 0.03
    assert len({tuple(layer.kept for layer in space.crossover(a, b, rng).layers) for _ in range(20)}) == 20


def test_crossover_takes_the_width_of_the_parent_that_has_the_block() -> None:
    space = toys.space(None, layers=3)
    a, b = space.build([[8, 64], [8, 64], [0, 0]]), space.build([[0, 0], [4, 256], [4, 256]])
    rng = np.random.default_rng(2)
    for _ in range(50):
        child = space.crossover(a, b, rng)
        assert child.layers[0].kept in ((("heads", 8), ("channels", 64)), (("heads", 0), ("channels", 0)))
        assert child.layers[2].kept in ((("heads", 4), ("channels", 256)), (("heads", 0), ("channels", 0)))
        assert 4 <= child.layers[1]["heads"] <= 8


def test_mutation_rates_and_jitter() -> None:
    space = toys.space(None, layers=6, channels=2000, quantum=1)
    start = space.build([[4, 1000]] * 6)
    rng = np.random.default_rng(3)
    flips, widths, factors = 0, 0, []
    for _ in range(3000):
        child = space.mutate(start, rng)
        skipped = sum(masks(child))
        assert skipped <= 1  # one bit at most
        flips += skipped
        channels = [layer["channels"] for layer in child.layers if not layer.skip]
        if any(k != 1000 for k in channels):
            widths += 1
            factors += [k / 1000 for k in channels]
    assert abs(flips / 3000 - 0.2) < 0.03
    assert abs(widths / 3000 - 0.2) < 0.03
    assert abs(np.mean(factors) - 1.0) < 0.02
    assert abs(np.std(factors) - 0.3) < 0.02


def test_mutation_that_is_switched_off_changes_nothing() -> None:
    space = toys.space(None, layers=4)
    rng = np.random.default_rng(0)
    assert space.mutate(space.base, rng, depth=0.0, width=0.0) == space.base
    assert space.mutate(space.base, rng, depth=1.0, width=0.0) != space.base


def test_a_block_comes_back_at_the_mean_width_of_the_others() -> None:
    space = toys.space(None, layers=4, keep_layers=frozenset({1, 2, 3}))
    start = space.build([[0, 0], [2, 64], [4, 128], [6, 192]])
    child = space.mutate(start, np.random.default_rng(0), depth=1.0, width=0.0)
    assert child.layers[0].kept == (("heads", 4), ("channels", 128))


@pytest.mark.parametrize("granularity", ["block", "sublayer"])
def test_flips_respect_min_depth_and_protected_blocks(granularity: str) -> None:
    space = toys.space(None, layers=4, min_depth=3, keep_layers=frozenset({0}), granularity=granularity)
    rng = np.random.default_rng(0)
    arch, seen = space.base, set()
    for _ in range(300):
        arch = space.mutate(arch, rng, depth=1.0, width=0.0)
        seen.add(tuple(masks(arch)))
        assert sum(not skip for skip in masks(arch)) >= 3
        assert all(k for _, k in arch.layers[0].kept)
    assert len(seen) == 4  # nothing skipped, or one of the three blocks that may go


def test_sublayer_flips_touch_one_sub_block() -> None:
    space = toys.space(None, layers=3, granularity="sublayer")
    rng = np.random.default_rng(0)
    halves = set()
    for _ in range(60):
        child = space.mutate(space.base, rng, depth=1.0, width=0.0)
        gone = [(i, key) for i, layer in enumerate(child.layers) for key, k in layer.kept if not k]
        assert len(gone) == 1
        halves.add(gone[0])
    assert len(halves) == 6


def test_samples_differ_in_depth_and_width() -> None:
    for granularity in ("block", "sublayer"):
        space = toys.space(0.6, layers=12, granularity=granularity)
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng) for _ in range(40)]
        assert all(a is not None for a in drawn)
        assert len({a.id for a in drawn if a}) == 40
        assert len({sum(k == 0 for layer in a.layers for _, k in layer.kept) for a in drawn if a}) >= 3


def test_profile_follows_its_ratios() -> None:
    space = toys.space(0.5, layers=4, heads=32, channels=2048)
    arch = space.profile([[1.0, 0.4], [0.8, 0.6], [0.6, 0.8], [0.4, 1.0]])
    assert arch is not None
    toys.assert_meets(space, arch)
    ratios = np.array(space.ratios(arch))
    assert (np.diff(ratios[:, 0]) < 0).all()
    assert (np.diff(ratios[:, 1]) > 0).all()
    assert ratios[0, 0] / ratios[3, 0] == pytest.approx(2.5, rel=0.15)
    same = space.profile([[10.0, 4.0], [8.0, 6.0], [6.0, 8.0], [4.0, 10.0]])
    assert same == arch  # the scale of a profile does not matter


def test_profile_drops_blocks_in_the_given_order() -> None:
    space = toys.space(0.1, layers=6, keep_layers=frozenset({5}))
    arch = space.profile([[1.0, 1.0]] * 6, drop_order=[5, 3, 0, 1, 2, 4])
    assert arch is not None
    gone = {i for i, skip in enumerate(masks(arch)) if skip}
    assert gone
    assert gone == {3, 0, 1, 2, 4} & set([3, 0, 1, 2, 4][: len(gone)])


def test_a_ratio_of_zero_in_a_profile_is_narrow_and_not_skipped() -> None:
    space = toys.space(0.6, layers=3, heads=16, channels=2048)
    zero = space.profile([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    assert zero is not None
    assert 0 < zero.layers[0]["heads"] < zero.layers[1]["heads"] / 2
    assert 0 < zero.layers[0]["channels"] < zero.layers[1]["channels"] / 4


@pytest.mark.parametrize("ratios", [[[1.0, 1.0]] * 3, [[1.0]] * 4, [[1.0, float("nan")]] * 4, [[1.0, -1.0]] * 4])
def test_malformed_profiles(ratios: list[list[float]]) -> None:
    space: SearchSpace = toys.space(0.5, layers=4)
    with pytest.raises(ValueError, match="profile"):
        space.profile(ratios)
