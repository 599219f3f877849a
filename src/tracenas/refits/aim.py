"""What a refit of output projections is told: how it holds on to the dense weights, and what it aims at."""

import math
from typing import NamedTuple

__all__ = ["DRIFTS", "FIRST_DRIFTS", "WORTH", "Aim", "drifts_to_try"]

FIRST_DRIFTS = (1.0, 0.5)
"""Shares of the drift that are compared first; the first one where nothing can be."""

DRIFTS = (*FIRST_DRIFTS, 0.75, 0.0)
"""All that are compared where that is worth it."""

WORTH = 1e-2
"""Nats per token below which two aims are as good as each other."""


class Aim(NamedTuple):
    """What a refit is told.

    Args:
        ridge: λ relative to the diagonal of the Gram matrix; positive.
        drift: of a sequential refit: d, the share of the drift that targets take up: 1 for the dense residual stream, 0
            for the sub-block's output alone.
    """

    ridge: float
    drift: float = FIRST_DRIFTS[0]


def drifts_to_try(whole: float, half: float) -> tuple[float, ...]:
    """Shares of the drift that may still be worth trying, from the losses ℓ of the first two.

    A refit is linear in d, so that ℓ is close to a parabola. Convex, it has ℓ(0) ≥ 2 ℓ(0.5) - ℓ(1): where the two are
    as good as each other d = 0 is not better by more than that, and where 1 is better it is the worst of all.

    Args:
        whole, half: ℓ(1) and ℓ(0.5), nats per token; infinite where it overflows.
    """
    if not (math.isfinite(whole) or math.isfinite(half)):
        return DRIFTS[2:]
    if abs(whole - half) <= WORTH:
        return ()
    return DRIFTS[2:3] if whole < half else DRIFTS[2:]
