"""Rank correlations and their BCa intervals against scipy."""

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from tracenas.studies import correlate

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
    found = correlate(x, y, np.random.default_rng(0), resamples=0)
    assert found.rho.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert found.tau.value == pytest.approx(stats.kendalltau(x, y, variant="b").statistic, abs=1e-12)


@pytest.mark.parametrize("seed", [1, 7, 11])
@pytest.mark.parametrize("levels", [4, 1000])
@pytest.mark.parametrize("level", [0.95, 0.8])
def test_intervals_are_scipys_of_the_plain_columns(seed: int, levels: int, level: float) -> None:
    """One column pair at a time through scipy's own coefficients, with the same draws."""
    x, y = columns(seed, levels)
    found = correlate(x, y, np.random.default_rng(3), resamples=200, level=level)
    measures = (lambda a, b: stats.spearmanr(a, b).statistic, lambda a, b: stats.kendalltau(a, b).statistic)
    for estimate, measure in zip((found.rho, found.tau), measures, strict=True):
        expected = stats.bootstrap(
            (x, y),
            measure,
            n_resamples=200,
            paired=True,
            vectorized=False,
            confidence_level=level,
            method="BCa",
            rng=np.random.default_rng(3),
        ).confidence_interval
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_leave_out_constant_resamples() -> None:
    """scipy, given only the resamples that have a coefficient, has the same interval; given all, it has none."""
    x, y = [0.0, 1.0, 0.0, 1.0, 0.0], [3.0, 1.0, 2.0, 4.0, 5.0]
    found = correlate(x, y, np.random.default_rng(5), resamples=300).rho

    def rho(a: list[float], b: list[float]) -> float:
        return math.nan if len(set(a)) == 1 or len(set(b)) == 1 else float(stats.spearmanr(a, b).statistic)

    def interval(**source: object) -> tuple[object, tuple[float, float]]:
        with np.errstate(invalid="ignore"):
            drawn = stats.bootstrap((x, y), rho, paired=True, vectorized=False, **source)
        return drawn, (drawn.confidence_interval.low, drawn.confidence_interval.high)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # which scipy 1.15 does not give
        drawn, undefined = interval(n_resamples=300, rng=np.random.default_rng(5))
    assert all(map(math.isnan, undefined))
    values = drawn.bootstrap_distribution
    assert 0 < np.isnan(values).sum() < 150
    drawn.bootstrap_distribution = values[~np.isnan(values)]
    assert (found.low, found.high) == pytest.approx(interval(n_resamples=0, bootstrap_result=drawn)[1], abs=1e-12)
