"""Rank correlations with BCa bootstrap confidence intervals (Efron 1987).

Spearman's ρ is Pearson's correlation of average ranks. Kendall's τ-b is

    τ_b = Σ_{i<j} s_ij t_ij / √(Σ_{i<j} s_ij² · Σ_{i<j} t_ij²),   s_ij = sign(x_i - x_j), t_ij = sign(y_i - y_j),

so tied pairs leave numerator and denominator. A bootstrap resample is a vector of counts c (how often each
architecture was drawn); both coefficients are functions of c and of matrices that are made once: the numerator of
τ_b is cᵀ(s∘t)c / 2, and the average rank of i in the resample is Σ_j c_j ([x_j < x_i] + [x_j = x_i] / 2) + 1/2.

Shapes: n architectures, B resamples.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracenas.errors import UserError

__all__ = ["MINIMUM", "Correlation", "Estimate", "correlate"]

Array = npt.NDArray[np.float64]

MINIMUM = 3
"""Architectures that a correlation needs."""

_SPREAD = 1e-9
"""Resampled coefficients that differ by less are one value, rounding aside."""


@dataclass(frozen=True)
class Estimate:
    """A coefficient and its BCa interval; None where a figure is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Correlation:
    """ρ and τ-b of two columns over the architectures that have both.

    Args:
        pairs: architectures that have both.
        missing: those that lack one (a proxy or a target that failed).
        reason: why the coefficients are undefined; None where they are defined.
    """

    rho: Estimate
    tau: Estimate
    pairs: int
    missing: int = 0
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def correlate(
    x: Sequence[float | None],
    y: Sequence[float | None],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    level: float = 0.95,
) -> Correlation:
    """ρ and τ-b with BCa bootstrap intervals over architectures (`scipy.stats.bootstrap`), pairwise complete.

    Resamples in which a column is constant have no coefficient and are left out. An interval is undefined where the
    data do not tell how far the coefficient varies: where more than half of the resamples are left out, where the
    others all have one value (a perfect order among them), where a column is constant without one architecture (BCa's
    jackknife), and where the coefficient lies outside of all resampled ones. Nothing replaces it there. Values that are
    None or not finite count as missing.

    Args:
        resamples: B; 0 for no intervals.
        level: of the intervals.

    Raises:
        UserError: for fewer than three architectures.
        ValueError: if the columns differ in length.
    """
    if len(x) != len(y):
        raise ValueError(f"columns of {len(x)} and {len(y)} values")
    if len(x) < MINIMUM:
        raise UserError(f"{len(x)} architectures: a correlation needs at least {MINIMUM}")
    both = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    both = [(a, b) for a, b in both if math.isfinite(a) and math.isfinite(b)]
    missing, nothing = len(x) - len(both), Estimate(None)
    if len(both) < MINIMUM:
        reason = f"{len(both)} of {len(x)} architectures have both values, at least {MINIMUM} are needed"
        return Correlation(nothing, nothing, len(both), missing, reason)
    a, b = (np.array(column, dtype=np.float64) for column in zip(*both, strict=True))
    for name, column in (("scores", a), ("targets", b)):
        if (column == column[0]).all():
            return Correlation(nothing, nothing, len(both), missing, f"all {name} are equal")
    values = _coefficients(a, b, np.arange(len(a)))
    intervals = _intervals(a, b, rng, resamples, level) if resamples else [(None, None)] * len(values)
    rho, tau = (Estimate(float(value), *bounds) for value, bounds in zip(values, intervals, strict=True))
    return Correlation(rho, tau, len(both), missing)


def _intervals(
    x: Array, y: Array, rng: np.random.Generator, resamples: int, level: float
) -> list[tuple[float | None, float | None]]:
    """The BCa intervals of ρ and τ-b, from the same resamples; a pair of None where one is undefined."""
    from scipy import stats  # takes a second, which a refusal of wrong settings should not

    def bootstrap(method: str, **source: Any) -> Any:
        with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            return stats.bootstrap(
                (np.arange(len(x)),),
                lambda places, axis: _coefficients(x, y, places),
                vectorized=True,
                confidence_level=level,
                method=method,
                **source,
            )

    drawn = bootstrap("percentile", n_resamples=resamples, rng=rng)
    defined = np.isfinite(drawn.bootstrap_distribution).all(axis=0)
    if 2 * defined.sum() < resamples:
        return [(None, None)] * 2
    drawn.bootstrap_distribution = drawn.bootstrap_distribution[:, defined]
    bounds = bootstrap("BCa", n_resamples=0, bootstrap_result=drawn).confidence_interval
    spreads = np.ptp(drawn.bootstrap_distribution, axis=1)
    return [
        (float(low), float(high)) if spread > _SPREAD and low <= high else (None, None)
        for spread, low, high in zip(spreads, bounds.low, bounds.high, strict=True)
    ]


def _coefficients(x: Array, y: Array, places: npt.NDArray[np.intp]) -> Array:
    """ρ and τ-b of resamples, [2, …]; NaN where a column is constant.

    Args:
        places: of the architectures in each resample, […, ≤ n].
    """
    rows = places.reshape(-1, places.shape[-1])
    counts_Bn = np.zeros((len(rows), len(x)))
    np.add.at(counts_Bn, (np.arange(len(rows))[:, None], rows), 1.0)
    return np.stack([measure(x, y, counts_Bn).reshape(places.shape[:-1]) for measure in (_spearman, _kendall)])


def _spearman(x: Array, y: Array, counts_Bn: Array) -> Array:
    """ρ per resample, [B]; NaN where a column is constant."""
    size = counts_Bn.sum(axis=1)
    centred = []
    for column in (x, y):
        below = (column[:, None] < column[None]) + 0.5 * (column[:, None] == column[None])
        ranks_Bn = counts_Bn @ below + 0.5
        centred.append(ranks_Bn - ((size + 1) / 2)[:, None])
    a, b = centred
    product, square_a, square_b = ((counts_Bn * p).sum(axis=1) for p in (a * b, a * a, b * b))
    return _quotient(product, square_a, square_b)


def _kendall(x: Array, y: Array, counts_Bn: Array) -> Array:
    """τ-b per resample, [B]; NaN where a column is constant."""
    s, t = (np.sign(column[:, None] - column[None]) for column in (x, y))
    forms = (((counts_Bn @ m) * counts_Bn).sum(axis=1) for m in (s * t, s * s, t * t))
    return _quotient(*forms)


def _quotient(product: Array, square_a: Array, square_b: Array) -> Array:
    scale = np.sqrt(square_a * square_b)
    out = np.full(product.shape, np.nan)
    np.divide(product, scale, out=out, where=scale > 1e-12)
    clipped: Array = np.clip(out, -1.0, 1.0)
    return clipped
