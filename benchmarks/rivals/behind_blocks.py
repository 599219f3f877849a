"""The loss from what leaves the last block: norm and head alone are run."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block
from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.supernet import bypass

__all__ = ["loss_behind"]


def loss_behind(model: Any, blocks: Sequence[Block], tokens: Tensor, leaving: Sequence[Tensor]) -> float:
    """Mean next-token loss of tokens [N, T] whose hidden states behind the last block are `leaving`, [B, T, D] each."""
    batches, total = tokens.split([len(states) for states in leaving]), 0.0
    with torch.no_grad(), ExitStack() as undo:
        current = _handed_on(model, blocks, undo)
        for ids, states in zip(batches, leaving, strict=True):
            current[0] = states
            total += float(next_token_nll(model, ids).sum(dtype=torch.float64))
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))


def _handed_on(model: Any, blocks: Sequence[Block], undo: ExitStack) -> list[Tensor]:
    """All blocks bypassed, but that behind the last one stands what is put into the list that is returned."""
    current: list[Tensor] = [torch.empty(0)]
    for block in blocks[:-1]:
        bypass(model, block, None, undo)

    def hand_on(_: Any, inputs: Any, output: Any) -> Any:
        return (current[0], *output[1:]) if isinstance(output, tuple) else current[0]

    undo.callback(model.get_submodule(blocks[-1].path).register_forward_hook(hand_on).remove)
    return current
