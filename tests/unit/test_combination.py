"""Weighted sums of rank-normalised proxies: parsing, ranks, and the order beyond the pool."""

import itertools
import math

import pytest

from tracenas.errors import UserError
from tracenas.proxies.combination import RankScale, choose, combined


def test_a_name_is_a_proxy_of_its_own() -> None:
    choice = choose("phi")
    assert choice.single and not choice.compensated
    assert [p.name for p in choice.proxies] == ["phi"]


def test_weights() -> None:
    choice = choose(" loss_compensated=0.7, phi=-3e-1 ")
    assert not choice.single and choice.compensated
    assert dict(choice.weights) == {"loss_compensated": 0.7, "phi": -0.3}
    assert choice.needs == {"compensated", "trace"}
    assert not choose("loss=1").single


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fi", "unknown proxy 'fi'"),
        ("loss_compensate=1,phi=1", "did you mean 'loss_compensated'"),
        ("loss=1,phi", "'phi' has no weight; accepted: NAME"),
        ("loss=1,", "'' has no weight"),
        ("=1,phi=2", "'=1' has no weight"),
        ("loss=1,phi=", "weight '' of 'phi' must be a number other than 0"),
        ("loss=1,phi=x", "weight 'x' of 'phi'"),
        ("loss=1,phi=nan", "weight 'nan' of 'phi'"),
        ("loss=1,phi=inf", "weight 'inf' of 'phi'"),
        ("loss=1,phi=0", "weight '0' of 'phi'"),
        ("loss=1,loss=2", "'loss' is given twice"),
        ("", "unknown proxy ''"),
    ],
)
def test_what_is_no_choice(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose(text)


def test_quantiles_in_the_pool() -> None:
    scale = RankScale([4.0, 1.0, 2.0, 8.0, 2.0])
    assert [scale(v) for v in (1.0, 2.0, 4.0, 8.0)] == [0.0, 0.375, 0.75, 1.0]
    assert scale(3.0) == pytest.approx((0.375 + 0.75) / 2)
    assert scale(5.0) == pytest.approx(0.75 + 0.25 / 4)


def test_order_beyond_the_ends() -> None:
    scale = RankScale([1.0, 2.0, 4.0, 8.0])
    values = [-1e30, -1e6, -5.0, 0.0, 0.999, 1.0, 1.5, 3.0, 7.9, 8.0, 8.001, 9.0, 20.0, 1e6, 1e12]
    ranks = [scale(v) for v in values]
    assert all(a < b for a, b in itertools.pairwise(ranks))
    assert ranks[0] >= -0.5
    assert ranks[-1] <= 1.5
    # the slope goes on as the pool's mean slope
    assert (scale(8.007) - 1) / 0.007 == pytest.approx(1 / 7, rel=1e-2)


def test_equal_values_and_single_ones() -> None:
    same = RankScale([3.0, 3.0, 3.0])
    assert same(3.0) == 0.5
    assert same(2.9) < 0.5 < same(3.1)
    assert RankScale([2.0])(2.0) == 0.5
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite values"):
            RankScale(bad)


def test_a_weighted_sum() -> None:
    choice = choose("loss=3,phi=-1")
    scales = {"loss": RankScale([-2.0, -1.0, 0.0]), "phi": RankScale([1.0, 3.0])}
    assert combined(choice, scales, {"loss": -1.0, "phi": 3.0}) == pytest.approx((3 * 0.5 - 1 * 1.0) / 4)
    better = combined(choice, scales, {"loss": 0.0, "phi": 3.0})
    assert better > combined(choice, scales, {"loss": -1.0, "phi": 3.0})
