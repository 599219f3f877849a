"""SLEB (Song et al., arXiv:2402.09025): blocks go one by one, each time the one without which the loss is lowest.

§3.2, with the loss of the model as pruned so far (the paper's third metric): j = argmin_j L(M without the removed ones
and j). The hidden states in front of a block are shared by all candidates behind it, so that a round over m blocks runs
m² / 2 of them and m heads.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from rivals.behind_blocks import loss_behind
from tracenas.families import Block
from tracenas.models.surgery.stepping import BlockRunner

__all__ = ["removal_order"]


def removal_order(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    enough: Callable[[Collection[int]], bool],
    report: Callable[[int, float], None] = lambda block, loss: None,
) -> list[int]:
    """Blocks in the order in which they go.

    Args:
        model: a decoder-only causal language model.
        tokens: int64 [N, L] that losses are measured on.
        enough: whether these blocks are enough.
        report: told which block goes, and the loss without it.
    """
    runner = BlockRunner(model, blocks)
    entering = runner.embed(tokens, micro_batch)
    order: list[int] = []
    while not enough(order):
        losses = _losses_without(model, blocks, runner, tokens, entering, order)
        cheapest = min(losses, key=lambda index: losses[index])
        order.append(cheapest)
        report(cheapest, losses[cheapest])
    return order


def _losses_without(
    model: Any,
    blocks: Sequence[Block],
    runner: BlockRunner,
    tokens: Tensor,
    entering: Sequence[Tensor],
    removed: Collection[int],
) -> dict[int, float]:
    """The loss without each of the blocks that are left."""
    states, losses = list(entering), {}
    left = [index for index in range(len(blocks)) if index not in removed]
    with torch.no_grad():
        for place, index in enumerate(left):
            without = list(states)
            for later in left[place + 1 :]:
                runner.advance(later, without)
            losses[index] = loss_behind(model, blocks, tokens, without)
            runner.advance(index, states)
    return losses
