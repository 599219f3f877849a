"""What is left of an output projection as units are taken out of it one after another, refitted after every one.

With W [D, n] the projection, H [n, n] the (shifted) Gram matrix of its inputs and C the columns of a unit, taking the
unit out and refitting the other columns costs

    ε_C = tr(W_C (H⁻¹_CC)⁻¹ W_Cᵀ) = min tr((W' - W) H (W' - W)ᵀ) over W' without the columns C,

and leaves (Optimal Brain Surgeon, Hassibi and Stork 1993; ZipLM, arXiv:2302.04089, §3.1)

    W ← W - W_C (H⁻¹_CC)⁻¹ H⁻¹_C:,    H⁻¹ ← H⁻¹ - H⁻¹_:C (H⁻¹_CC)⁻¹ H⁻¹_C:.
"""

import torch
from torch import Tensor

__all__ = ["Remainder", "inverse"]


class Remainder:
    """What is left: H⁻¹ [m, m], Wᵀ [m, D], columns of no unit first, then those of `units`.

    Args:
        inverse: H⁻¹, float64.
        weight: Wᵀ, float64.
        units: int64, those that are left.
        size: columns of a unit.
    """

    def __init__(self, inverse: Tensor, weight: Tensor, units: Tensor, size: int) -> None:
        self.inverse, self.weight, self.units, self.size = inverse, weight, units, size

    def costs(self) -> Tensor:
        """ε of every unit, [units]."""
        places = self._columns()
        factors = torch.linalg.cholesky(self.inverse[places[:, :, None], places[:, None, :]])
        return _squares(factors, self.weight[places])

    def remove(self, chosen: Tensor) -> Tensor:
        """Take the units at these places out and refit the others; what they cost together."""
        places = self._columns()
        removed = places[chosen].flatten()
        left = torch.ones(len(self.weight), dtype=torch.bool, device=removed.device)
        left[removed] = False
        others = left.nonzero()[:, 0]
        rows = self.inverse[removed]
        factor = torch.linalg.cholesky(rows[:, removed])
        cost = _squares(factor[None], self.weight[removed][None])[0]
        across = rows[:, others]
        update = torch.cholesky_solve(across, factor)
        self.weight = self.weight[others].addmm_(update.T, self.weight[removed], alpha=-1)
        self.inverse = self.inverse[others][:, others].addmm_(across.T, update, alpha=-1)
        self.units = self.units[left[places[:, 0]]]
        return cost

    def _columns(self) -> Tensor:
        """Of every unit, [units, columns of a unit]."""
        count = len(self.units) * self.size
        return torch.arange(len(self.weight) - count, len(self.weight), device=self.units.device).view(-1, self.size)


def inverse(gram: Tensor, ridge: float | Tensor) -> Tensor:
    """(G + diag λ)⁻¹; `gram` is the caller's to lose, λ a number or [n]."""
    gram.diagonal().add_(ridge)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram))


def _squares(factor: Tensor, weight: Tensor) -> Tensor:
    """tr(Wᵀ (L Lᵀ)⁻¹ W) of every matrix of a stack: L [b, s, s], W [b, s, D] → [b]."""
    solved: Tensor = torch.linalg.solve_triangular(factor, weight, upper=False)
    return solved.square().sum((1, 2))
