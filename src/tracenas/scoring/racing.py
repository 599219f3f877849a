"""Racing: stop measuring a candidate once it is clearly worse than the worst elite, on the same sequences.

A proxy whose score is minus a mean over the calibration sequences (`additive`) can be measured a few sequences at a
time. Let d_i = ℓ_i(candidate) - ℓ_i(bar) over the k of N sequences seen so far; the bar is the worst elite at the
start of the generation. Whoever is worse than it cannot become an elite, whatever else the generation brings, so
stopping there changes nothing but the cost if the verdict is right. It is passed when

    mean(d) > z · s_k · √((1/k) · (1 - k/N)),   s_k² = (ν σ² + (k - 1) var(d)) / (ν + k - 1)

with the finite-population factor (at k = N nothing is uncertain) and the variance shrunk towards σ², the median
variance of such differences between the bar and the latest candidates that were measured to the end: a few sequences
alone say little about it, and elites are more alike than a newcomer and an elite are. The growing share of the
sample follows Hoeffding races (Maron and Moore, 1994) with the paired differences of F-Race (Birattari et al., 2002).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Bar", "generation_bar", "looks"]

Z = 2.5
"""Standard errors by which a candidate must be worse: a wrong verdict now and then costs a candidate near the bar."""

_PRIOR_WEIGHT = 4.0
"""ν: sequences that σ² counts for."""

_LATEST = 16
"""Candidates that σ² is learnt from."""


@dataclass(frozen=True)
class Bar:
    """What candidates of one generation must not be clearly worse than.

    Args:
        losses: of the worst elite per calibration sequence, nats per token [N].
        variance: σ², of paired differences between the bar and other candidates.
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


def generation_bar(elites: Sequence[Sequence[float]], measured: Sequence[Sequence[float]]) -> Bar | None:
    """The bar of a generation.

    Args:
        elites: losses per sequence, best first.
        measured: losses per sequence of all candidates that were measured to the end, the latest last.

    Returns:
        None where there are no elites, or no other candidate to learn the variance from.
    """
    if not elites:
        return None
    bar = np.asarray(elites[-1], dtype=np.float64)
    differences = [d for losses in measured if (d := np.asarray(losses, dtype=np.float64) - bar).any()]
    if not differences:
        return None
    variance = np.median([np.var(d, ddof=1) for d in differences[-_LATEST:]]) if len(bar) > 1 else 0.0
    return Bar(tuple(float(v) for v in bar), float(variance))


def looks(count: int) -> Iterator[slice]:
    """The calibration's sequences in the pieces that end with a look: after 1, 2, 3, 4, 6, 9, 13, … of `count`."""
    start = 0
    while start < count:
        end = min(count, start + max(1, start // 2))
        if count - end == 1 and start:
            end = count
        yield slice(start, end)
        start = end
