"""Rank correlations against scipy, bootstrapped ones against resampling by hand."""

import numpy as np
import pytest
from scipy import stats

from tracenas.studies import correlate, kendall, spearman

pytestmark = pytest.mark.parity


def columns(seed: int, levels: int) -> tuple[list[float], list[float]]:
    """Two related columns with ties: values on few levels."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, levels, size=rng.integers(5, 40)).astype(float)
    y = np.round(x * rng.choice([-1, 1]) + rng.normal(0, levels / 3, size=len(x)))
    return x.tolist(), y.tolist()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("levels", [3, 10, 1000])
def test_coefficients_are_scipys(seed: int, levels: int) -> None:
    x, y = columns(seed, levels)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y, variant="b").statistic, abs=1e-12)


@pytest.mark.parametrize("levels", [4, 1000])
def test_intervals_are_those_of_resampled_columns(levels: int) -> None:
    """The counts drawn by `correlate`, spelled out as columns and given to scipy."""
    x, y = columns(7, levels)
    found = correlate(x, y, np.random.default_rng(3), resamples=200)
    counts = np.random.default_rng(3).multinomial(len(x), np.full(len(x), 1 / len(x)), size=200)
    rho, tau = [], []
    for count in counts:
        a, b = np.repeat(x, count), np.repeat(y, count)
        rho.append(stats.spearmanr(a, b).statistic)
        tau.append(stats.kendalltau(a, b).statistic)
    for own, values in ((found.rho, rho), (found.tau, tau)):
        assert (own.low, own.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-12)
