"""G = Σ XᵀX over batches of rows: products in float32 (float64 of float64 rows), sums in float64.

G is symmetric, so only the blocks on and below its diagonal are computed: (1 + 1/blocks)/2 of the products.
"""

import torch
from torch import Tensor

from tracenas.refits.costs import gram_blocks

__all__ = ["GramSum"]


class GramSum:
    """Sums the Gram matrices of batches.

    Args:
        columns: n.
        device: of the sum; memory 8 n² bytes.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self._lower = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add XᵀX of X [rows, n], float32 or float64."""
        for start, end in gram_blocks(rows.shape[1]):
            self._lower[start:end, :end] += rows[:, start:end].T @ rows[:, :end]

    def total(self) -> Tensor:
        """G, float64 [n, n]; this is the sum itself: nothing may be added afterwards."""
        for start, end in gram_blocks(self._lower.shape[0]):
            self._lower[:start, start:end] = self._lower[start:end, :start].T
        return self._lower
