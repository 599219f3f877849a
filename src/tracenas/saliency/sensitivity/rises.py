"""The predicted rise of the loss at every width of a sub-block, its units in the order in which they are best removed.

With G = E[x xᵀ] [n, n] of the inputs of the output projection W [D, n], Γ [D, D] the Fisher matrix of its outputs and
A = G + λ diag(G) + 10⁻⁶ mean(diag G) I, the elimination of `saliency.elimination` with metric Γ raises the mean loss by
about ½ tr(Γ E[δy δyᵀ]), with A for G: half of its cost (Optimal Brain Surgeon, with the Kronecker-factored curvature of
LLM Surgeon, arXiv:2312.17244). λ counts for every channel in proportion to its own energy: as a share of the mean, one
massive channel would drown the rest.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tracenas.refits.penalty import per_channel
from tracenas.saliency.elimination import Sweep, sweep

__all__ = ["RIDGE", "metric_root", "predicted_rises"]

RIDGE = 0.1
"""λ, relative to every channel's own second moment."""


def metric_root(metric: Tensor) -> Tensor:
    """R [D, D] with R Rᵀ = Γ, float64: its Cholesky factor, or that of its eigenvectors where Γ is singular."""
    wide = metric.double()
    factor, failed = torch.linalg.cholesky_ex(wide)
    if failed:
        values, vectors = torch.linalg.eigh(wide)
        factor = vectors * values.clamp(min=0).sqrt()
    root: Tensor = factor
    return root


def predicted_rises(
    gram: Tensor,
    weight: Tensor,
    metric: Tensor,
    owner: Tensor,
    widths: Sequence[int],
    *,
    groups: int = 1,
    ridge: float = RIDGE,
) -> Sweep:
    """The sweep, its costs in nats per token.

    Args:
        gram: G, float64 [n, n].
        weight: W, [D, n].
        metric: Γ, [D, D].
        owner, widths, groups: as `sweep` takes them.
        ridge: λ.
    """
    moment = gram.clone()
    moment.diagonal().add_(per_channel(gram, ridge))
    swept = sweep(moment, weight.T.double() @ metric_root(metric), owner, widths, groups=groups)
    return replace(swept, cost=0.5 * swept.cost, bypass=0.5 * swept.bypass)
