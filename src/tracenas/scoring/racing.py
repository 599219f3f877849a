"""Racing: stop measuring a candidate once it is clearly worse than the worst elite, on the same sequences.

A proxy whose score is minus a mean over the calibration sequences (`additive`) can be measured a few sequences at a
time. Let d_i = ℓ_i(candidate) - ℓ_i(bar) over the k of N sequences seen so far; the bar is the worst elite at the
start of the generation. Whoever is worse than it cannot become an elite, whatever else the generation brings, so
stopping there changes nothing but the cost if the verdict is right. It is passed when

    mean(d) > z · s_k · √((1/k) · (1 - k/N)),   s_k² = (ν σ² + (k - 1) var(d)) / (ν + k - 1)

with the finite-population factor (at k = N nothing is uncertain) and the variance shrunk towards σ², the median
variance of such differences between elites: two or four sequences alone say little about it. The sequential
halving of a sample follows Hoeffding races (Maron and Moore, 1994) with the paired differences of F-Race
(Birattari et al., 2002).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Bar", "bar_of", "looks"]

Z = 3.0
"""Standard errors by which a candidate must be worse; few looks (`looks`), so no further correction."""

_PRIOR_WEIGHT = 4.0
"""ν: sequences that the elites' variance counts for."""

_FIRST = 2
"""Sequences before the first look."""


@dataclass(frozen=True)
class Bar:
    """What candidates of one generation must not be clearly worse than.

    Args:
        losses: of the worst elite per calibration sequence, nats per token [N].
        variance: σ², of paired differences between elites.
    """

    losses: tuple[float, ...]
    variance: float

    @property
    def mean(self) -> float:
        """The bar's loss over all sequences."""
        return math.fsum(self.losses) / len(self.losses)

    def beats(self, losses: Sequence[float], z: float = Z) -> bool:
        """Whether a candidate with these losses on the first k sequences is clearly worse than the bar."""
        k, n = len(losses), len(self.losses)
        if not all(math.isfinite(v) for v in losses):
            return True
        d = np.asarray(losses, dtype=np.float64) - np.asarray(self.losses[:k], dtype=np.float64)
        spread = float(((d - d.mean()) ** 2).sum())
        variance = (_PRIOR_WEIGHT * self.variance + spread) / (_PRIOR_WEIGHT + k - 1)
        return bool(d.mean() > z * math.sqrt(variance / k * (1 - k / n)) and d.mean() > 0)

    def estimate(self, losses: Sequence[float]) -> float:
        """A stopped candidate's loss over all sequences: the bar's, and the mean difference seen."""
        return self.mean + math.fsum(losses) / len(losses) - math.fsum(self.losses[: len(losses)]) / len(losses)


def bar_of(elites: Sequence[Sequence[float]]) -> Bar | None:
    """The bar of a generation from its elites' losses per sequence, best first.

    Returns:
        None with fewer than two elites: there is no difference to learn the variance from.
    """
    if len(elites) < 2:
        return None
    matrix = np.asarray(elites, dtype=np.float64)
    pairs = [np.var(a - b, ddof=1) for i, a in enumerate(matrix) for b in matrix[:i]] if matrix.shape[1] > 1 else [0.0]
    return Bar(tuple(float(v) for v in matrix[-1]), float(np.median(pairs)))


def looks(count: int) -> Iterator[slice]:
    """The calibration's sequences in the pieces that are measured before each look: 2, 2, 4, 8, … of `count`."""
    start = 0
    while start < count:
        end = min(count, max(_FIRST, 2 * start))
        if count - end == 1:
            end = count
        yield slice(start, end)
        start = end
