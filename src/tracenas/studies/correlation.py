"""Rank correlations with bootstrap confidence intervals.

Spearman's ρ is Pearson's correlation of average ranks. Kendall's τ-b is

    τ_b = Σ_{i<j} s_ij t_ij / √(Σ_{i<j} s_ij² · Σ_{i<j} t_ij²),   s_ij = sign(x_i - x_j), t_ij = sign(y_i - y_j),

so tied pairs leave numerator and denominator. A bootstrap resample is a vector of counts c (how often each
architecture was drawn); both coefficients are functions of c and of matrices that are made once: the numerator of
τ_b is cᵀ(s∘t)c / 2, and the average rank of i in the resample is Σ_j c_j ([x_j < x_i] + [x_j = x_i] / 2) + 1/2.

Shapes: n architectures, B resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tracenas.errors import UserError

__all__ = ["MINIMUM", "Correlation", "Estimate", "correlate", "kendall", "spearman"]

Array = npt.NDArray[np.float64]

MINIMUM = 3
"""Architectures that a correlation needs."""


@dataclass(frozen=True)
class Estimate:
    """A coefficient and its percentile interval; None where a figure is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_json(self) -> dict[str, float | None]:
        """Plain data."""
        return {"value": self.value, "low": self.low, "high": self.high}


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
        return {
            "rho": self.rho.to_json(),
            "tau": self.tau.to_json(),
            "pairs": self.pairs,
            "missing": self.missing,
            "reason": self.reason,
        }


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's ρ with average ranks for ties; None if a column is constant.

    Raises:
        ValueError: if the columns differ in length or hold a value that is not finite.
    """
    return _only(_spearman(*_columns(x, y), np.ones((1, len(x)))))


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's τ-b; None if a column is constant.

    Raises:
        ValueError: if the columns differ in length or hold a value that is not finite.
    """
    return _only(_kendall(*_columns(x, y), np.ones((1, len(x)))))


def correlate(
    x: Sequence[float | None],
    y: Sequence[float | None],
    rng: np.random.Generator,
    *,
    resamples: int = 2000,
    level: float = 0.95,
) -> Correlation:
    """ρ and τ-b with percentile bootstrap intervals over architectures, pairwise complete.

    Resamples in which a column is constant have no coefficient and are left out; where they are more than half, the
    interval is undefined. Values that are None or not finite count as missing.

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
    whole = np.ones((1, len(a)))
    drawn = rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size=resamples).astype(np.float64)
    found = [
        _estimate(measure(a, b, whole)[0], measure(a, b, drawn) if resamples else drawn[:, 0], level)
        for measure in (_spearman, _kendall)
    ]
    return Correlation(found[0], found[1], len(both), missing)


def _estimate(value: float, resampled: Array, level: float) -> Estimate:
    defined = resampled[np.isfinite(resampled)]
    if 2 * len(defined) < len(resampled) or not len(defined):
        return Estimate(float(value))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(value), float(low), float(high))


def _columns(x: Sequence[float], y: Sequence[float]) -> tuple[Array, Array]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"columns of shapes {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("columns hold values that are not finite")
    return a, b


def _only(values: Array) -> float | None:
    return float(values[0]) if np.isfinite(values[0]) else None


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
