"""What a refit of output projections is told: how strongly it holds on to the dense weights, and what it aims at."""

from typing import NamedTuple

__all__ = ["DRIFTS", "Aim"]

DRIFTS = (1.0, 0.75, 0.5, 0.0)
"""Shares of the drift that are compared; the first one where nothing can be."""


class Aim(NamedTuple):
    """What a refit is told.

    Args:
        ridge: λ relative to the diagonal of the Gram matrix; positive.
        drift: of a sequential refit: d, the share of the drift that targets take up: 1 for the dense residual stream, 0
            for the sub-block's output alone.
    """

    ridge: float
    drift: float = DRIFTS[0]
