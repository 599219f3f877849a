"""One sweep over a sub-block from its full width to nothing: the order of its units and the cost of every width.

W [D, n] is the output projection, G = E[x xᵀ] [n, n] the second moment of its inputs, Γ [D, D] the Fisher matrix of
its outputs. With A = G + λ diag(G) + 10⁻⁶ mean(diag G) I and B = A⁻¹, removing columns R and refitting the rest S

    W_S ← W_S - W_R (B_RR)⁻¹ B_RS,    B ← B_SS - B_SR (B_RR)⁻¹ B_RS

raises the mean loss by about ½ tr(Γ E[δy δyᵀ]), with A for G

    Δ = ½ tr(Γ W_R (B_RR)⁻¹ W_Rᵀ).

The refit does not depend on Γ, the order does: at every step the units of the least Δ alone go (Optimal Brain Surgeon,
with the Kronecker-factored curvature of LLM Surgeon, arXiv:2312.17244). With Γ = R Rᵀ, Δ is half of what saliency `obs`
has for Rᵀ W. λ counts for every channel in proportion to its own energy: as a share of the mean, one massive channel
would drown the rest.

2 n³ + n² D multiply-adds and 32 n² + 16 n D bytes per sub-block, in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.refits.penalty import per_channel

__all__ = ["RIDGE", "Sweep", "metric_root", "sweep"]

RIDGE = 0.1
"""λ, relative to every channel's own second moment."""


@dataclass(frozen=True)
class Sweep:
    """The elimination of one projection's units.

    Args:
        order: int64 [units], the unit that goes first first.
        rise: float64 [units]: the predicted rise of the loss once the units up to this place are removed and the
            others refitted, in nats; exact at the widths, in between shared out by the units' single costs.
        bypass: once all columns are removed, those of no unit among them.
    """

    order: Tensor
    rise: Tensor
    bypass: float


def metric_root(metric: Tensor) -> Tensor:
    """R [D, D] with R Rᵀ = Γ, float64: its Cholesky factor, or that of its eigenvectors where Γ is singular."""
    wide = metric.double()
    factor, failed = torch.linalg.cholesky_ex(wide)
    if failed:
        values, vectors = torch.linalg.eigh(wide)
        factor = vectors * values.clamp(min=0).sqrt()
    root: Tensor = factor
    return root


def sweep(
    gram: Tensor,
    weight: Tensor,
    metric: Tensor,
    owner: Tensor,
    widths: Sequence[int],
    *,
    groups: int = 1,
    ridge: float = RIDGE,
) -> Sweep:
    """Remove all units, step by step from one of `widths` to the next.

    Args:
        gram: G, float64 [n, n].
        weight: W, [D, n].
        metric: Γ, [D, D].
        owner: int64 [n], the unit of every column; -1 for columns of no unit. Every unit has as many columns.
        widths: feasible numbers of units, ascending, the last one all of them.
        groups: KV groups; the units of a group lie side by side, and groups lose as many.
        ridge: λ.
    """
    units = widths[-1]
    rest = _Rest(gram, weight.T.double() @ metric_root(metric), owner.to(gram.device), ridge)
    group = torch.arange(units, device=gram.device) // (units // groups)
    left = torch.ones(units, dtype=torch.bool, device=gram.device)
    removed: list[Tensor] = []
    rises: list[Tensor] = []
    total = gram.new_zeros(())
    remaining = units
    for width in (*reversed(widths[:-1]), 0):
        while remaining > width:
            sizes = torch.bincount(group[left], minlength=groups)
            costs = rest.costs().masked_fill(~left | (sizes < sizes.max())[group], torch.inf)
            cheapest, chosen = costs.topk(remaining - width if groups == 1 else 1, largest=False)
            left[chosen] = False
            remaining -= len(chosen)
            removed.append(chosen)
            together = rest.remove(rest.columns[chosen].flatten())
            shares = cheapest.cumsum(0) / cheapest.sum()
            rises.append(total + together * torch.where(shares.isfinite(), shares, 1.0))
            total = total + together
    fixed = (owner < 0).nonzero()[:, 0].to(gram.device)
    bypass = total + rest.remove(fixed) if len(fixed) else total
    return Sweep(torch.cat(removed).cpu(), 0.5 * torch.cat(rises).cpu(), 0.5 * float(bypass))


class _Rest:
    """What is left of Wᵀ R [n, D] as columns go: B = B₀ - Pᵀ P, of which B₀ stays as it is and P gets a row per column.

    With B_RR = L Lᵀ, removing R adds the rows L⁻¹ B_R: to P: Cholesky's factorisation of B with the elimination's
    order as its pivots. Rows and columns that are gone stay in place and are not looked at again.

    Args:
        gram: G, float64 [n, n].
        weight: Wᵀ R, float64 [n, D]; the caller's to lose.
        owner: int64 [n], -1 for columns of no unit.
        ridge: λ.
    """

    def __init__(self, gram: Tensor, weight: Tensor, owner: Tensor, ridge: float) -> None:
        shifted = gram.clone()
        shifted.diagonal().add_(per_channel(gram, ridge))
        self.inverse, self.weight = _inverse(shifted), weight
        self.factor = gram.new_empty(len(owner), len(owner))
        self.removed = 0
        units = int(owner.max()) + 1
        order = owner.argsort(stable=True)
        self.columns = order[len(order) - int((owner >= 0).sum()) :].view(units, -1)
        """Of every unit, [units, columns of a unit]."""
        self.blocks = self.inverse[self.columns[:, :, None], self.columns[:, None, :]]
        """B_CC of every unit."""

    def costs(self) -> Tensor:
        """tr(W_C (B_CC)⁻¹ W_Cᵀ) of every unit, [units]; of those that are gone, anything."""
        rows = self.weight[self.columns]
        if self.columns.shape[1] == 1:
            alone: Tensor = rows.square().sum((1, 2)) / self.blocks[:, 0, 0]
            return alone
        factors, _ = torch.linalg.cholesky_ex(self.blocks)
        solved: Tensor = torch.linalg.solve_triangular(factors, rows, upper=False)
        return solved.square().sum((1, 2))

    def remove(self, columns: Tensor) -> Tensor:
        """Take columns out and refit the others; what that costs."""
        before = self.factor[: self.removed]
        rows = self.inverse[columns].addmm_(before[:, columns].T, before, alpha=-1)
        root = torch.linalg.cholesky(rows[:, columns])
        added = torch.linalg.solve_triangular(root, rows, upper=False, out=self._next(len(columns)))
        mixed = torch.linalg.solve_triangular(root, self.weight[columns], upper=False)
        self.weight.addmm_(added.T, mixed, alpha=-1)
        part = added[:, self.columns]  # [removed, units, columns of a unit]
        self.blocks -= torch.einsum("ruc,rud->ucd", part, part)
        cost: Tensor = mixed.square().sum()
        return cost

    def _next(self, count: int) -> Tensor:
        """The next rows of P, to be written."""
        self.removed += count
        return self.factor[self.removed - count : self.removed]


def _inverse(matrix: Tensor) -> Tensor:
    """Of a symmetric positive definite matrix, by the inverse of its Cholesky factor."""
    unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    lower: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), unit, upper=False)
    return lower.T @ lower
