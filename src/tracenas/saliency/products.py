"""Weight × gradient, summed over every unit's weights, in a streamed backward pass.

For f = mean over the calibration's sequences of a functional of each: p_j = Σ_{w in unit j} |w · ∂f/∂w|, or the sum
without absolute values. The gradient of one matrix, dyᵀx, exists while it is reduced to one number per unit, and
blocks are checkpointed: their activations are computed a second time when the backward pass reaches them.

The absolute value needs the gradient of the whole calibration. Where that fits into memory as one batch, one pass
does it. Where it does not, a decoder's blocks are walked through one at a time (`block_by_block`), with smaller
batches and the float32 gradients of one block. Where blocks are no single chain (encoder and decoder), gradients of as
many matrices as fit are summed over smaller batches, and each such group of matrices costs one pass over the
calibration. The result is the same but for rounding.

Only weights count (as published), not biases, and only rows and columns that go with a unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Projection, SubBlock, present
from tracenas.models.functionals.loss import gradient_scale
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.recomputed import recomputed
from tracenas.models.surgery.streaming import streamed_blocks
from tracenas.saliency.backwards import Functional, block_by_block
from tracenas.saliency.sinks import CHUNK_ELEMENTS, Sink

__all__ = ["Functional", "mean_per_weight", "unit_products"]

SHARE = 0.16
"""Of the model's bytes: what a pass may take beside the model."""

LEAST = 16 << 20
"""Bytes that a pass may take however small the model is."""

_CHUNKS = 8
"""Temporary tensors of that size, float32, at a time."""

_ACTIVATIONS = 1.75
"""What autograd keeps of a block, over the inputs and outputs of its projections."""


def unit_products(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    functional: Functional,
    *,
    absolute: bool = True,
    allowance: int | None = None,
) -> dict[Key, Tensor]:
    """Σ |w · ∂f/∂w| (or Σ w · ∂f/∂w) over the weights of every unit: float64 [units] per sub-block, on the CPU.

    Args:
        model: a frozen transformers causal language model, fp32 or bf16.
        blocks: where its units live.
        tokens: int64 [N, T] on the model's device.
        micro_batch: sequences per pass at most; fewer are taken where the allowance asks for it.
        functional: f of every sequence.
        absolute: whether the absolute value of every product is summed.
        allowance: bytes beside the model; default 16 % of its own (16 MiB at least).
    """
    plan = _plan(model, blocks, tokens, micro_batch, absolute, allowance)
    scale = gradient_scale(model, tokens.numel())

    def watched(group: Sequence[Matrix], undo: ExitStack) -> list[Sink]:
        return [Sink(model, blocks[i], (i, sub), p, plan.accumulate, absolute, undo) for i, sub, p in group]

    def mean(net: Any, batch: Tensor) -> Tensor:
        return functional(net, batch).sum() / (tokens.shape[0] / scale)

    totals: dict[Key, Tensor] = {}
    if plan.walks:
        by_block = dict(zip((group[0][0] for group in plan.groups), plan.groups, strict=True))
        walk = block_by_block(
            model, blocks, tokens, plan.batch, mean, lambda i, undo: watched(by_block.get(i, ()), undo)
        )
    else:
        walk = (_at_once(model, blocks, tokens.split(plan.batch), mean, group, watched) for group in plan.groups)
    for sinks in walk:
        for sink in sinks:
            total = sink.finish() / scale
            totals[sink.key] = totals[sink.key] + total if sink.key in totals else total
    return totals


def _at_once(
    model: Any,
    blocks: Sequence[Block],
    batches: Sequence[Tensor],
    functional: Functional,
    group: "Sequence[Matrix]",
    watched: Callable[["Sequence[Matrix]", ExitStack], list[Sink]],
) -> list[Sink]:
    """Backward passes of the whole model, its blocks checkpointed, that show the gradients of a group of matrices."""
    with ExitStack() as undo:
        sinks = watched(group, undo)
        for block in blocks[group[0][0] :]:
            undo.enter_context(recomputed(model.get_submodule(block.path)))
        with torch.enable_grad():
            for batch in batches:
                functional(model, batch).backward()
    return sinks


def mean_per_weight(blocks: Sequence[Block], per_unit: Mapping[Key, Tensor]) -> dict[Key, float]:
    """A sub-block's importance: its units' saliency over the parameters that go with them."""
    return {
        key: float(per_unit[key].sum()) / (sub.spec.units * sub.spec.parameters_per_unit)
        for key, sub in present(blocks)
    }


# --- what fits ------------------------------------------------------------------------------------


Matrix = tuple[int, SubBlock, Projection]
"""(block, sub-block, projection)."""


@dataclass(frozen=True)
class _Plan:
    """What is done at a time.

    Args:
        batch: sequences.
        groups: matrices of every pass; of every block where it `walks`.
        accumulate: whether gradients are summed over batches.
        walks: whether blocks run one at a time, instead of the whole model for every group.
    """

    batch: int
    groups: tuple[tuple[Matrix, ...], ...]
    accumulate: bool
    walks: bool = False


def _plan(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, absolute: bool, allowance: int | None
) -> _Plan:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    free = max(LEAST, int(SHARE * weights)) if allowance is None else allowance
    free -= 4 * _CHUNKS * CHUNK_ELEMENTS[tokens.device.type]
    count, length = tokens.shape
    element = next(iter(model.parameters())).element_size()
    per_sequence = length * _per_token(blocks) * element
    largest = min(count, micro_batch)
    fitting = max(1, min(largest, int(free // per_sequence)))
    matrices = tuple(
        (key[0], sub, p) for key, sub in present(blocks) for p in sub.projections if p.row_units or p.column_units
    )
    if (fitting == count or not absolute) and streamed_blocks(model) is None:
        return _Plan(fitting, (matrices,), accumulate=False)
    if not blocks[0].stack:
        by_block = tuple(tuple(group) for _, group in groupby(matrices, key=lambda matrix: matrix[0]))
        free -= max(_gradient_bytes(group) for group in by_block) + 2 * count * length * _hidden(blocks) * element
        return _Plan(max(1, min(largest, int(free // (length * _in_block(blocks) * element)))), by_block, True, True)
    batch = max(1, min(largest, int(free // 2 // per_sequence)))
    groups = _groups(matrices, free - int(batch * per_sequence))
    return _Plan(batch, tuple(groups), accumulate=True)


def _per_token(blocks: Sequence[Block]) -> float:
    """Values that a token leaves behind: the input of every block, and the activations of the widest one."""
    return len(blocks) * _hidden(blocks) + _in_block(blocks)


def _in_block(blocks: Sequence[Block]) -> float:
    """Values that a token leaves behind in the widest block, its input and the gradient of its output among them."""
    sizes = [0] * len(blocks)
    for key, sub in present(blocks):
        sizes[key[0]] += sum((p.rows + p.columns) * (p.active or 1) for p in sub.projections)
    return 2 * _hidden(blocks) + _ACTIVATIONS * max(sizes)


def _hidden(blocks: Sequence[Block]) -> int:
    """Width of the residual stream: the side of a projection on which no units lie; of an expert's the shorter one."""
    projections = (p for _, sub in present(blocks) for p in sub.projections)
    sides = (min(p.rows, p.columns) if p.stack else p.columns if p.row_units else p.rows for p in projections)
    return max(sides, default=1)


def _groups(matrices: Sequence[Matrix], limit: int) -> Iterator[tuple[Matrix, ...]]:
    """Consecutive matrices whose float32 gradients fit the limit, one at least."""
    group: list[Matrix] = []
    taken = 0
    for matrix in matrices:
        size = _gradient_bytes((matrix,))
        if group and taken + size > limit:
            yield tuple(group)
            group, taken = [], 0
        group.append(matrix)
        taken += size
    if group:
        yield tuple(group)


def _gradient_bytes(group: Sequence[Matrix]) -> int:
    """Of the float32 gradients of some matrices."""
    return sum(4 * p.rows * p.columns * (p.stack or 1) for _, _, p in group)
