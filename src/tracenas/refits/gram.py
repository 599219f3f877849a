"""Gram matrices of the inputs of every output projection, one block at a time, in one pass over the tokens.

G = XᵀX, X [tokens, columns] the input of `o_proj` or `down_proj` in the dense model. Products of a micro-batch in
float32 (float64 for float64 models), sums in float64. At any time there are the hidden states of all tokens
(tokens × hidden, in the model's dtype) and the Gram matrices of one block (8 · columns² bytes each).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block, present
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.stepping import BlockRunner, watch
from tracenas.refits.dense_stream import StreamRecorder
from tracenas.refits.first_tokens import embedded_first_tokens
from tracenas.refits.gram_sum import GramSum

__all__ = ["gram_matrices"]


def gram_matrices(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, stream: StreamRecorder | None = None
) -> Iterator[tuple[Key, Tensor]]:
    """XᵀX of every sub-block's output projection (not of fused experts), in forward order.

    They are float64 [columns, columns], on the model's device.
    Columns are in the order that the model has now: of a super-network's model, in saliency order. What is
    yielded is the caller's, and is not kept here.

    Args:
        model: the dense causal language model.
        blocks: where its units live.
        tokens: int64 [N, L].
        micro_batch: sequences per forward pass.
        stream: records the hidden states, those of first tokens behind the others.

    Raises:
        UserError: if an activation is not finite.
    """
    runner = BlockRunner(model, blocks)
    hidden = runner.embed(tokens, micro_batch)
    beside = [] if stream is None else embedded_first_tokens(runner, tokens, micro_batch)
    device = next(iter(model.parameters())).device
    for index, block in enumerate(blocks):
        sums: dict[Key, GramSum] = {}
        with ExitStack() as recording:
            if stream is not None:
                recording.enter_context(stream.recording(model, index))
            with ExitStack() as watching:
                for key, sub in present(blocks):
                    if key[0] == index and not sub.stacked:
                        sums[key] = total = GramSum(sub.output_projection.columns, device)
                        watching.enter_context(watch(model.get_submodule(f"{block.path}.{sub.output}"), _adder(total)))
                runner.advance(index, hidden)
            runner.advance(index, beside)
        if stream is not None:
            stream.left(index, [*hidden, *beside])
        for key in list(sums):
            gram = sums.pop(key).total()
            if not torch.isfinite(gram.diagonal().sum()):
                where = f"block {key[0]}, {key[1]}"
                raise UserError(f"{where}: the dense model's activations are not finite; try dtype=fp32")
            yield key, gram


def _adder(total: GramSum) -> Callable[[Tensor, Tensor], None]:
    def see(x: Tensor, _: Tensor) -> None:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        total.add(wide)

    return see
