"""Fluctuation saliency (FLAP, arXiv:2312.11983, §3.2 and §3.3): what a unit's output does besides being constant.

S_j = Var_t(X_tj) · ‖W_:,j‖² for every input column j of an output projection (WIFV; the variance is over all tokens
of the calibration), standardised within the sub-block, (S - mean S) / std S, so that sub-blocks compare, and averaged
over the columns of a unit. Values may be negative. A column that is constant can be replaced by a bias at no loss:
the published method adds such a bias; here `--compensate` refits the output projection instead, which needs none.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, SubBlock, present
from tracenas.models.surgery.ordering import Key, Saliencies, dense_weight
from tracenas.saliency.statistics import ColumnMoments, column_moments
from tracenas.saliency.wanda import per_unit

__all__ = ["saliency"]


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """The standardised mean of S over the columns of every unit, and the mean of S of every sub-block."""
    moments = column_moments(model, blocks, tokens, micro_batch)
    units: dict[Key, Tensor] = {}
    importance: dict[Key, float] = {}
    for key, sub in present(blocks):
        scores = _fluctuations(model, blocks[key[0]], sub, moments[key])
        spread = scores.std(correction=0)
        standard = (scores - scores.mean()) / spread if float(spread) > 0 else torch.zeros_like(scores)
        units[key] = per_unit(sub, standard) / per_unit(sub, torch.ones_like(standard))
        importance[key] = float(scores.mean())
    return units, importance


def _fluctuations(model: Any, block: Block, sub: SubBlock, moments: ColumnMoments) -> Tensor:
    """S per column, float64 [columns]; [experts, columns] of a mixture."""
    weight = dense_weight(model, block, sub.output_projection).float()
    norms: Tensor = weight.square().sum(dim=-2, dtype=torch.float64).cpu()
    return moments.variance() * norms
