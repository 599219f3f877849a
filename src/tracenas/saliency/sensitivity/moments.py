"""Second moments of the inputs of every output projection, experts' and encoder–decoders' among them, in one pass.

G = E[x xᵀ] over the tokens that reach the projection: all of a stack's, of an expert those that are routed to it.
A decoder goes forward block by block, with the matrices of one block in memory; an encoder–decoder, whose blocks are
no single chain, with those of all blocks. The two halves of the text are kept apart, so that what is fitted on one can
be tried on the other.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.surgery.experts import watch_experts
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.stepping import BlockRunner, watch
from tracenas.paging import Keep, in_memory
from tracenas.refits.dense_stream import StreamRecorder
from tracenas.refits.first_tokens import embedded_first_tokens
from tracenas.refits.gram_sum import GramSum
from tracenas.saliency.statistics import run_hooked

__all__ = ["Moments", "input_moments"]


@dataclass(frozen=True)
class Moments:
    """What enters a projection, or an expert's.

    Args:
        second: E[x xᵀ], float64 [n, n].
        mean: E[x], float64 [n].
        tokens: how many it is the mean over; 0: both are 0.
        halves: E[x xᵀ] over the first and over the second half of the sequences, float32 [n, n] each.
    """

    second: Tensor
    mean: Tensor
    tokens: int
    halves: tuple[Tensor, Tensor]


class _Sums:
    """Sums that become `Moments`."""

    def __init__(self, columns: int, device: torch.device) -> None:
        self.grams = [GramSum(columns, device) for _ in range(2)]
        self.total = torch.zeros(columns, dtype=torch.float64, device=device)
        self.tokens = [0, 0]
        self.half = 0
        """Which one comes in."""

    def add(self, rows: Tensor) -> None:
        """Add inputs [tokens, n]."""
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.grams[self.half].add(wide)
        self.total += wide.sum(0, dtype=torch.float64)
        self.tokens[self.half] += len(rows)

    def moments(self, keep: Keep) -> Moments:
        """The means."""
        count = max(1, sum(self.tokens))
        first, second = (gram.total() for gram in self.grams)
        self.grams.clear()
        halves = tuple(
            keep(torch.div(half, max(1, n), out=torch.empty_like(half, dtype=torch.float32)))
            for half, n in zip((first, second), self.tokens, strict=True)
        )
        both = first.add_(second)
        del second
        return Moments(keep(both.div_(count)), self.total / count, sum(self.tokens), (halves[0], halves[1]))


def input_moments(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    keep: Keep = in_memory,
    stream: StreamRecorder | None = None,
) -> Iterator[tuple[Key, list[Moments]]]:
    """The moments of every sub-block that has units, in forward order: one entry, or one for every fused expert.

    Args:
        model: the dense model, its units in the base's order.
        blocks: where its units live.
        tokens: int64 [N, L] on the model's device.
        micro_batch: sequences per forward pass, of one half.
        keep: where the matrices and the hidden states lie.
        stream: records the hidden states, of a decoder, those of first tokens behind the others.

    Raises:
        UserError: if an activation is not finite.
    """
    halves = tokens.tensor_split(2)
    if blocks[0].stack:
        with ExitStack() as undo:
            sums = [_watched(model, blocks, index, undo) for index in range(len(blocks))]
            for half, rows in enumerate(halves):
                _begin((one for of_block in sums for one in _all(of_block)), half)
                run_hooked(model, rows, micro_batch, ())
        for of_block in sums:
            yield from _means(of_block, keep)
        return
    runner = BlockRunner(model, blocks, keep)
    hidden = [runner.embed(rows, micro_batch) if len(rows) else [] for rows in halves]
    beside = [] if stream is None else embedded_first_tokens(runner, tokens, micro_batch)
    for index in range(len(blocks)):
        with ExitStack() as recording:
            if stream is not None:
                recording.enter_context(stream.recording(model, index))
            with ExitStack() as undo:
                of_block = _watched(model, blocks, index, undo)
                for half, states in enumerate(hidden):
                    _begin(_all(of_block), half)
                    runner.advance(index, states)
            runner.advance(index, beside)
        if stream is not None:
            stream.left(index, [*hidden[0], *hidden[1], *beside])
        yield from _means(of_block, keep)


def _all(sums: dict[Key, list[_Sums]]) -> Iterator[_Sums]:
    return (one for totals in sums.values() for one in totals)


def _begin(sums: Iterable[_Sums], half: int) -> None:
    for one in sums:
        one.half = half


def _watched(model: Any, blocks: Sequence[Block], index: int, undo: ExitStack) -> dict[Key, list[_Sums]]:
    """Sums over the inputs of a block's output projections, filled until the stack closes."""
    block = blocks[index]
    sums: dict[Key, list[_Sums]] = {}
    device = next(iter(model.parameters())).device
    for sub in block.sub_blocks:
        if not sub.spec.units:
            continue
        projection = sub.output_projection
        sums[index, sub.spec.name] = totals = [_Sums(projection.columns, device) for _ in range(projection.stack or 1)]
        if sub.stacked:
            undo.callback(watch_experts(model, block, sub, _to_expert(totals)).remove)
        else:
            undo.enter_context(watch(model.get_submodule(f"{block.path}.{sub.output}"), _to_first(totals)))
    return sums


def _to_expert(totals: Sequence[_Sums]) -> Callable[[int, Tensor], None]:
    return lambda expert, rows: totals[expert].add(rows)


def _to_first(totals: Sequence[_Sums]) -> Callable[[Tensor, Tensor], None]:
    return lambda rows, _: totals[0].add(rows)


def _means(sums: dict[Key, list[_Sums]], keep: Keep) -> Iterator[tuple[Key, list[Moments]]]:
    for key in list(sums):
        moments = [total.moments(keep) for total in sums.pop(key)]
        if not all(torch.isfinite(one.second.diagonal().sum()) for one in moments):
            raise UserError(f"block {key[0]}, {key[1]}: the dense model's activations are not finite; try dtype=fp32")
        yield key, moments
