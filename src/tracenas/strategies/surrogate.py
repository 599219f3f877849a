"""Bayesian linear regression of the scores on the retention ratios: which candidate is worth an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Surrogate", "features", "fit"]

NOISE = tuple(10.0 ** (0.5 * e) for e in range(-12, 9))
"""Values of σ²/τ² among which the evidence chooses."""


def features(ratios: Sequence[Sequence[float]]) -> np.ndarray:
    """What the score is linear in: κ of every sub-block, whether it is there, and Σ κ² per kind of sub-block.

    The last are the curvature that all sub-blocks of a kind share: the wider one is, the less a channel more is worth.

    Args:
        ratios: retention ratios κ per layer and sub-block, 0 = bypassed.

    Returns:
        float64 (2·sub-blocks + kinds,); a kind is a place in the layer's row.
    """
    flat = np.array([r for row in ratios for r in row], dtype=np.float64)
    kinds = max(len(row) for row in ratios)
    squares = [sum(row[k] ** 2 for row in ratios if k < len(row)) for k in range(kinds)]
    return np.concatenate([flat, (flat > 0).astype(np.float64), squares])


@dataclass(frozen=True)
class Surrogate:
    """score(x) ≈ level + wᵀ(x - centre), w the posterior mean.

    Args:
        level: mean score of the candidates it was fitted to.
        centre: their mean features, (d,).
        weights: w, (d,).
    """

    level: float
    centre: np.ndarray
    weights: np.ndarray

    def __call__(self, x: np.ndarray) -> float:
        """The expected score of a candidate with features x (d,)."""
        return self.level + float(self.weights @ (x - self.centre))


def fit(x: np.ndarray, y: np.ndarray) -> Surrogate:
    """The posterior mean under w ~ N(0, τ²I) and noise N(0, σ²), both of the highest evidence.

    With X and y centred and λ = σ²/τ², w = (XᵀX + λI)⁻¹Xᵀy, and y ~ N(0, σ²(XXᵀ/λ + I)), whose likelihood is highest
    at σ² = yᵀ(XXᵀ/λ + I)⁻¹y/n; λ is the best of a grid.

    Args:
        x: features of n candidates, (n, d).
        y: their scores, (n,), finite.
    """
    centre, level, n = x.mean(axis=0), float(y.mean()), len(y)
    u, s, vt = np.linalg.svd(x - centre, full_matrices=False)
    seen = u.T @ (y - level)
    unseen = max(float(np.sum((y - level) ** 2) - np.sum(seen**2)), 0.0)

    def evidence(ratio: float) -> float:
        stretch = 1.0 + s**2 / ratio
        noise = max((float(np.sum(seen**2 / stretch)) + unseen) / n, 1e-18)
        return -0.5 * (n * float(np.log(noise)) + float(np.sum(np.log(stretch))))

    ratio = max(NOISE, key=evidence)
    return Surrogate(level, centre, vt.T @ (s / (s**2 + ratio) * seen))
