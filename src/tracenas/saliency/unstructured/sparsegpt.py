"""SparseGPT (Frantar & Alistarh, arXiv:2301.00774, algorithm 1): masks and weight updates by optimal brain surgery.

Column by column from the left: a pruned weight's error is compensated by the columns to its right, with the
inverse Hessian of these. H = mean x xᵀ; its diagonal is damped by 1 % of its mean.
"""

import torch
from torch import Tensor

from tracenas.saliency.masks import Sparsity, keep
from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["BLOCK", "DAMPING", "SPARSEGPT", "inverse_factor", "score", "solve"]

BLOCK = 128
"""Columns whose mask is chosen at once, compared over all rows (N:M: groups of M within a row)."""

DAMPING = 0.01


def inverse_factor(gram: Tensor) -> tuple[Tensor, Tensor]:
    """U with UᵀU = (H + damping)⁻¹, upper triangular, float32, and the columns whose input is always 0.

    U_ii² is the i-th pivot: the first diagonal entry of the inverse of H restricted to columns i, i+1, ….
    """
    hessian = gram.double().clone()
    dead = hessian.diagonal() == 0
    hessian.diagonal()[dead] = 1.0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True).float(), dead


def score(s: Statistics) -> Tensor:
    """S_ij = W_ij² / U_jj² with the weights as they are: masks without the update."""
    factor, dead = inverse_factor(s.read("gram"))
    return (s.weight / factor.diagonal()).square().masked_fill(dead, 0.0)


def solve(s: Statistics, target: Sparsity) -> tuple[Tensor, Tensor]:
    """The updated weight with exact zeros, and where it stays."""
    factor, dead = inverse_factor(s.read("gram"))
    weight = s.weight.clone()
    weight[:, dead] = 0.0
    mask = torch.ones_like(weight, dtype=torch.bool)
    columns = weight.shape[1]
    width = BLOCK if not target.m else max(target.m, BLOCK // target.m * target.m)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        block = weight[:, start:end].clone()
        local = factor[start:end, start:end]
        errors = torch.zeros_like(block)
        if not target.m:
            mask[:, start:end] = keep((block / local.diagonal()).square(), target, "layer")
        for i in range(end - start):
            if target.m and i % target.m == 0:
                group = slice(i, i + target.m)
                scores = (block[:, group] / local.diagonal()[group]).square()
                mask[:, start + i : start + i + target.m] = keep(scores, target)
            column = block[:, i].clone()
            block[:, i] = torch.where(mask[:, start + i], column, torch.zeros_like(column))
            errors[:, i] = (column - block[:, i]) / local[i, i]
            block[:, i + 1 :] -= errors[:, i : i + 1] * local[i, i + 1 :]
        weight[:, start:end] = block
        weight[:, end:] -= errors @ factor[start:end, end:]
    return weight, mask


SPARSEGPT = Metric("sparsegpt", score, frozenset({"gram"}), compare="layer", solve=solve, reference="arXiv:2301.00774")
