"""What a refit is penalised by for leaving the dense weights: λ for every column, from the Gram matrix."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tracenas.refits.ridge import Penalty, strength

__all__ = ["FLOOR", "PENALTIES", "per_channel"]

FLOOR = 1e-6
"""Added to every channel, relative to the mean diagonal."""

_NOTHING = 1e-30


def per_channel(gram: Tensor, ridge: float) -> Tensor:
    """λ_j = ridge · G_jj + 10⁻⁶ · mean diagonal, float64 [n]: one massive channel does not set the others' λ.

    Next to nothing where all of G is 0 (the inputs of an expert without tokens).

    Raises:
        ValueError: if `ridge` is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, it is {ridge}")
    energy = gram.diagonal().double()
    mean = energy.mean()
    return ridge * energy + FLOOR * mean if mean > 0 else torch.full_like(energy, _NOTHING)


PENALTIES: Mapping[str, Penalty] = {
    "mean": strength,
    "channel": per_channel,
}
"""λ in proportion to the mean diagonal, the same for all columns, or to every column's own."""
