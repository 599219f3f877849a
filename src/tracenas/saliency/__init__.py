"""Saliency of units: what they are ranked by; one file each."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tracenas.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from tracenas.families import Block

__all__ = ["FOR_REFITS", "OF_TABLES", "PLAIN", "PREDICTED_RISES", "SALIENCIES", "Saliency"]

Saliency = Callable[
    [Any, "Sequence[Block]", "Tensor", int],
    "tuple[dict[tuple[int, str], Tensor], dict[tuple[int, str], float]]",
]
"""(model, blocks, tokens [N, L], micro-batch) → per unit [units] and per sub-block, by (block, sub-block)."""

SALIENCIES: Registry[Saliency] = Registry(
    "saliency",
    {
        "block_influence": "tracenas.saliency.block_influence:saliency",
        "fisher": "tracenas.saliency.fisher:saliency",
        "flap": "tracenas.saliency.flap:saliency",
        "magnitude": "tracenas.saliency.magnitude:saliency",
        "nirvana": "tracenas.saliency.nirvana:saliency",
        "nirvana_loss": "tracenas.saliency.nirvana:loss_saliency",
        "obs": "tracenas.saliency.obs:saliency",
        "peak_to_peak": "tracenas.saliency.peak_to_peak:saliency",
        "taylor": "tracenas.saliency.taylor:saliency",
        "wanda": "tracenas.saliency.wanda:saliency",
    },
)

FOR_REFITS = frozenset({"fisher", "obs"})
"""Those that rank units by what a refit of the output projection cannot make up for."""

PLAIN, OF_TABLES = "wanda", "fisher"
"""What units are ranked by where nothing is said: as they are, and with a sensitivity table for refits."""

PREDICTED_RISES = frozenset({"fisher"})
"""Those that are predicted rises of the loss, which compare between sub-blocks."""
