"""Activation-weighted saliency (TraceNAS §3.3, after Wanda, arXiv:2306.11695), and the layer prior (A.1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, SubBlock, present
from tracenas.models.surgery.ordering import Key, Saliencies, dense_weight
from tracenas.saliency.statistics import ColumnNorms, column_norms

__all__ = ["importance", "per_unit", "saliency", "unit_saliency"]


def per_unit(sub: SubBlock, columns: Tensor) -> Tensor:
    """Sum of a per-column score of the output projection over each unit's columns, float64 [units]."""
    owner = sub.output_projection.unit_ids(1, sub.spec.units)
    total = torch.zeros(sub.spec.units, dtype=torch.float64)
    in_unit = torch.from_numpy(owner >= 0)
    total.index_add_(0, torch.from_numpy(owner)[in_unit], columns.double().cpu()[in_unit])
    return total


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """I_{l,j} = Σ_i |W_ij| · ‖X_j‖₂ per unit, and I_l = E[|W| ⊙ ‖X‖] per sub-block.

    Returns:
        `(per unit, per sub-block)`: float64 [units] and a float per (block, sub-block).
    """
    statistics = column_norms(model, blocks, tokens, micro_batch)
    units = {key: unit_saliency(model, blocks[key[0]], sub, statistics.norms[key]) for key, sub in present(blocks)}
    return units, importance(model, blocks, statistics)


def unit_saliency(model: Any, block: Block, sub: SubBlock, norms: Tensor) -> Tensor:
    """I_{l,j} of one sub-block, float64 [units], from ‖X_j‖₂ of its output projection's columns."""
    return per_unit(sub, _column_scores(model, block, sub, norms))


def _column_scores(model: Any, block: Block, sub: SubBlock, norms: Tensor) -> Tensor:
    weight = dense_weight(model, block, sub.output_projection)
    total: Tensor = weight.float().abs().sum(dim=-2, dtype=torch.float64).cpu() * norms
    return total


def importance(model: Any, blocks: Sequence[Block], statistics: ColumnNorms) -> dict[Key, float]:
    """I_l = mean over i, j of |W_ij| · ‖X_j‖₂ of every sub-block (TraceNAS A.1)."""
    return {
        key: float(
            _column_scores(model, blocks[key[0]], sub, statistics.norms[key]).mean() / sub.output_projection.rows
        )
        for key, sub in present(blocks)
    }
