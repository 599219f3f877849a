"""Units ranked by the predicted rise of the loss, the refit included: the order of the sensitivity table.

A unit's saliency is the rise in nats per token once it and all before it are removed, which the widths of a sub-block
share (`saliency.sensitivity`); a sub-block's importance is the rise when it is bypassed. Both compare between
sub-blocks, so that allocation `solver` reads the costs of all widths from them.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block
from tracenas.models.surgery.ordering import Key
from tracenas.saliency.sensitivity.measuring import measure_sensitivity
from tracenas.saliency.sensitivity.table import SensitivityTable

__all__ = ["as_saliency", "label_generator", "saliency"]


def saliency(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int
) -> tuple[dict[Key, Tensor], dict[Key, float]]:
    """Saliencies and importance from a table that is measured on `tokens` [N, L].

    Raises:
        UserError: as `measure_sensitivity`.
    """
    return as_saliency(measure_sensitivity(model, blocks, tokens, micro_batch, label_generator(tokens)))


def as_saliency(table: SensitivityTable) -> tuple[dict[Key, Tensor], dict[Key, float]]:
    """What a saliency answers, from a table."""
    units = {key: torch.from_numpy(one.saliency) for key, one in table.costs.items()}
    return units, {key: one.at(0) for key, one in table.costs.items()}


def label_generator(tokens: Tensor) -> torch.Generator:
    """What labels are drawn by: seeded by the token ids, which the run's seed has drawn."""
    return torch.Generator().manual_seed(zlib.crc32(tokens.cpu().contiguous().numpy().tobytes()))
