"""One sweep over a sub-block from its full width to nothing: the order of its units and the cost of every width.

W [D, n] is the output projection, G = E[x xᵀ] [n, n] the second moment of its inputs, Γ [D, D] the Fisher matrix of
its outputs. With A = G + λ diag(G) + 10⁻⁶ mean(diag G) I and B = A⁻¹, removing columns R and refitting the rest S

    W_S ← W_S - W_R (B_RR)⁻¹ B_RS,    B ← B_SS - B_SR (B_RR)⁻¹ B_RS

raises the mean loss by about ½ tr(Γ E[δy δyᵀ]), with A for G

    Δ = ½ tr(Γ W_R (B_RR)⁻¹ W_Rᵀ).

The refit does not depend on Γ, the order does: at every step the units of the least Δ alone go (Optimal Brain Surgeon,
with the Kronecker-factored curvature of LLM Surgeon, arXiv:2312.17244). With Γ = R Rᵀ, Δ = ½ ‖…‖² of Rᵀ W: the same
recursion as that of saliency `obs`, on Rᵀ W. λ counts for every channel in proportion to its own energy: as a share of
the mean, one massive channel would drown the rest.

n³/3 + n² D multiply-adds, 24 n² + 8 n D bytes, in float64, per sub-block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.saliency.remainder import Remainder, inverse

__all__ = ["FLOOR", "RIDGE", "Sweep", "metric_root", "per_channel", "sweep"]

RIDGE = 0.1
"""λ, relative to every channel's own second moment."""

FLOOR = 1e-6
"""Added to every channel, relative to the mean second moment."""

_NOTHING = 1e-30


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


def per_channel(gram: Tensor, ridge: float) -> Tensor:
    """λ diag(G) + 10⁻⁶ mean(diag G), float64 [n]; next to nothing where G is 0 (an expert without tokens).

    Raises:
        ValueError: if λ is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, it is {ridge}")
    energy = gram.diagonal().double()
    mean = energy.mean()
    return ridge * energy + FLOOR * mean if mean > 0 else torch.full_like(energy, _NOTHING)


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
    order = owner.argsort(stable=True).to(gram.device)  # columns of no unit first, then unit by unit
    device = gram.device
    rest = Remainder(
        inverse(gram[order][:, order], per_channel(gram, ridge)[order]),
        weight.T[order].double() @ metric_root(metric),
        torch.arange(units, device=device),
        int((owner == 0).sum()),
    )
    group = torch.arange(units, device=device) // (units // groups)
    removed: list[Tensor] = []
    rises: list[Tensor] = []
    total = gram.new_zeros(())
    for width in (*reversed(widths[:-1]), 0):
        while len(rest.units) > width:
            sizes = torch.bincount(group[rest.units], minlength=groups)
            costs = rest.costs().masked_fill((sizes < sizes.max())[group[rest.units]], torch.inf)
            count = len(rest.units) - width if groups == 1 else 1
            cheapest, chosen = costs.topk(count, largest=False)
            removed.append(rest.units[chosen])
            together = rest.remove(chosen)
            shares = cheapest.cumsum(0) / cheapest.sum()
            rises.append(total + together * torch.where(shares.isfinite(), shares, 1.0))
            total = total + together
    fixed = float(_everything(rest)) if len(rest.weight) else 0.0
    return Sweep(torch.cat(removed).cpu(), 0.5 * torch.cat(rises).cpu(), 0.5 * (float(total) + fixed))


def _everything(rest: Remainder) -> Tensor:
    """tr(W B⁻¹ Wᵀ) of the columns that no unit has."""
    factor = torch.linalg.cholesky(rest.inverse)
    solved: Tensor = torch.linalg.solve_triangular(factor, rest.weight, upper=False)
    return solved.square().sum()
