"""Peak-to-peak magnitude of a channel's weights times its activation, the hybrid score of optipfair.

For channel j of an MLP, r_M(j) = max - min over its row of the gate and of the up projection, and over its column of
the down projection, and X the down projection's inputs:

    I_j = ‖X_j‖₂ · Σ_M r_M(j) / max_i r_M(i).

An MLP without a gate has two such matrices. Attention's heads, of many rows each, are ranked as Wanda ranks them,
and so is the importance of sub-blocks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Projection, SubBlock, present
from tracenas.models.surgery.ordering import Saliencies, dense_weight
from tracenas.saliency.statistics import column_norms
from tracenas.saliency.wanda import importance, per_unit, unit_saliency

__all__ = ["saliency"]


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """I_j per channel, Wanda's saliency per head, and Wanda's importance of every sub-block."""
    statistics = column_norms(model, blocks, tokens, micro_batch)
    units = {
        key: (_channels if _has_channels(sub) else unit_saliency)(model, blocks[key[0]], sub, statistics.norms[key])
        for key, sub in present(blocks)
    }
    return units, importance(model, blocks, statistics)


def _has_channels(sub: SubBlock) -> bool:
    """Whether every unit is one row or one column of each matrix."""
    return all(segment.size == 1 for p in sub.projections for axis in (0, 1) for segment in p.segments(axis))


def _channels(model: Any, block: Block, sub: SubBlock, norms: Tensor) -> Tensor:
    """I_j of one MLP, float64 [units]; of a mixture expert after expert."""
    parts = [part for p in sub.projections for part in _ranges(dense_weight(model, block, p), p, sub.spec.units)]
    total = torch.stack([part / part.max().clamp_min(torch.finfo(part.dtype).tiny) for part in parts]).sum(dim=0)
    return total * per_unit(sub, norms)


def _ranges(weight: Tensor, projection: Projection, units: int) -> Iterator[Tensor]:
    """max - min of every unit's row, or column, for each place that units have in a matrix, float64 [units]."""
    each = units // (projection.stack or 1)
    for axis in (0, 1):
        along = -1 if axis == 0 else -2
        for segment in projection.segments(axis):
            found = (weight.amax(along) - weight.amin(along)).double().cpu()  # [n], or [experts, n]
            yield found[..., torch.from_numpy(segment.indices(each)[:, 0])].reshape(-1)
