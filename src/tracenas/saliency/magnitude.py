"""Magnitude (Li et al., arXiv:1608.08710, for filters): the L1 norm of a unit's weights in all its projections.

I_j = Σ_{w in unit j} |w|. Needs no text.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Projection, SubBlock, present
from tracenas.models.surgery.ordering import Key, Saliencies, dense_weight
from tracenas.saliency.products import mean_per_weight

__all__ = ["saliency"]


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """Σ |w| per unit, and its mean per weight of every sub-block; the text is not read."""
    per_unit: dict[Key, Tensor] = {}
    for key, sub in present(blocks):
        parts = [_norms(model, blocks[key[0]], sub, p) for p in sub.projections if p.row_units or p.column_units]
        per_unit[key] = torch.stack(parts).sum(dim=0)
    return per_unit, mean_per_weight(blocks, per_unit)


def _norms(model: Any, block: Block, sub: SubBlock, projection: Projection) -> Tensor:
    axis = 0 if projection.row_units else 1
    owner = torch.from_numpy(projection.unit_ids(axis, sub.spec.units)).reshape(-1)
    sums = dense_weight(model, block, projection).abs().sum(dim=-1 if axis == 0 else -2, dtype=torch.float64)
    total = torch.zeros(sub.spec.units + 1, dtype=torch.float64)
    total.index_add_(0, torch.where(owner < 0, sub.spec.units, owner), sums.reshape(-1).cpu())
    return total[:-1]
