"""Bayesian linear regression of scores around a prior mean, in a unit of score that is learnt as well.

    y = a + fᵀθ + ε,    θ ~ c · N(m₀, t² I),    ε ~ N(0, c² s² v),    a flat

c is the factor that all of θ have in common, v how much looser a candidate is to be fitted than others. The unit c and
the noise s are those of the highest evidence: with rows divided by √v, y′ and F′ the projections onto what
is orthogonal to the level, K the covariance of y′/c and μ = F′m₀, the evidence of u = 1/c is
n log u - ½ (u y′ - μ)ᵀ K⁻¹ (u y′ - μ), highest at

    u = (b + √(b² + 4 n a)) / 2a,    a = y′ᵀK⁻¹y′,    b = y′ᵀK⁻¹μ.

Shapes: n candidates, d features.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

__all__ = ["NOISES", "SPREAD", "Posterior", "fit"]

Floats = npt.NDArray[np.float64]

SPREAD = 0.2
"""t. A dozen scores cannot tell it: by their evidence it is now next to nothing, and nothing new is proposed, now so
large that what is proposed is far off (SmolLM2 at 50 and 60 %)."""
NOISES = tuple(10.0 ** (-0.5 * e) for e in range(1, 7))
"""Values of s, in the unit that features are in: no model of scores is right to less than a thousandth of a nat."""
_TINY = 1e-12


@dataclass(frozen=True)
class Posterior:
    """θ given the scores.

    Args:
        level, centre: mean score and mean features [d] of the candidates, weighted by 1/v.
        mean: E[θ], [d].
        covariance: of θ, [d, d].
        unit: c, of the score.
        noise: s.
    """

    level: float
    centre: Floats
    mean: Floats
    covariance: Floats
    unit: float
    noise: float

    def __call__(self, features: Floats) -> float:
        """The expected score of a candidate, features [d]."""
        return self.level + float(self.mean @ (features - self.centre))

    def sample(self, rng: np.random.Generator) -> Floats:
        """A draw of θ, [d]."""
        draw: Floats = self.mean + self._root @ rng.standard_normal(len(self.mean))
        return draw

    @cached_property
    def _root(self) -> Floats:
        values, vectors = np.linalg.eigh(self.covariance)
        root: Floats = vectors * np.sqrt(np.maximum(values, 0.0))
        return root

    def awaiting(self, features: Floats, best: Floats) -> "Posterior":
        """As sure as once a candidate is measured, of features f [d] beside the best's [d]; the mean is as before.

        What a batch is chosen by: its candidates are not to ask one question twice (Desautels et al., JMLR 2014, §4).
        """
        change = features - best
        shared = self.covariance @ change
        known = float(change @ shared) + (self.unit * self.noise) ** 2
        return replace(self, covariance=self.covariance - np.outer(shared, shared) / known)

    def improvement(self, features: Floats, best: Floats) -> float:
        """E[max(0, fᵀθ - gᵀθ)]: what a candidate of features f [d] is expected to gain on the best, of features g."""
        change = features - best
        gain, spread = float(self.mean @ change), math.sqrt(max(float(change @ self.covariance @ change), 0.0))
        if spread == 0:
            return max(gain, 0.0)
        z = gain / spread
        density = math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return gain * 0.5 * math.erfc(-z / math.sqrt(2)) + spread * density


def fit(features: Floats, scores: Floats, expected: Floats, looseness: Floats | None = None) -> Posterior:
    """The posterior at the unit and noise of the highest evidence.

    With one candidate, or with equal ones, nothing is learnt: the prior in units of 1.

    Args:
        features: [n, d].
        scores: [n], finite; higher is better.
        expected: m₀, [d].
        looseness: v, [n]; None: 1 for all.
    """
    scale = np.ones(len(scores)) if looseness is None else 1 / np.sqrt(looseness)
    centre, level = np.average(features, axis=0, weights=scale**2), float(np.average(scores, weights=scale**2))
    basis = _orthogonal_to(scale) * scale
    f, y = basis @ (features - centre), basis @ (scores - level)
    size = len(expected)
    if not (np.abs(f).max(initial=0.0) > 0 and np.abs(y).max(initial=0.0) > 0):
        return Posterior(level, centre, expected, SPREAD**2 * np.eye(size), 1.0, NOISES[-1])
    _, unit, noise = max(_evidence(f, y, expected, s) for s in NOISES)
    gain = np.linalg.solve(SPREAD**2 * f @ f.T + noise**2 * np.eye(len(y)), SPREAD**2 * f).T
    mean = expected + gain @ (y / unit - f @ expected)
    covariance = SPREAD**2 * (np.eye(size) - gain @ f)
    return Posterior(level, centre, unit * mean, unit**2 * covariance, unit, noise)


def _evidence(f: Floats, y: Floats, expected: Floats, noise: float) -> tuple[float, float, float]:
    """The log evidence of a noise, but for a constant, at its best unit, that unit, and the noise."""
    factor = np.linalg.cholesky(SPREAD**2 * f @ f.T + noise**2 * np.eye(len(y)))
    seen, predicted = np.linalg.solve(factor, y), np.linalg.solve(factor, f @ expected)
    a, b, n = float(seen @ seen), float(seen @ predicted), len(y)
    inverse = (b + math.sqrt(b**2 + 4 * n * a)) / (2 * max(a, _TINY))
    rest = inverse * seen - predicted
    evidence = n * math.log(inverse) - float(np.log(np.diag(factor)).sum()) - 0.5 * float(rest @ rest)
    return evidence, 1.0 / inverse, noise


def _orthogonal_to(direction: Floats) -> Floats:
    """An orthonormal basis of what is orthogonal to a direction [n], [n - 1, n]."""
    basis: Floats = np.linalg.qr(direction[:, None], mode="complete")[0][:, 1:].T
    return basis
