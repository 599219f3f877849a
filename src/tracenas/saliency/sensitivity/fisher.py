"""Fisher matrices of the outputs of every sub-block's output projection: one backward pass on sampled labels.

    Γ = Σ_t g_t g_tᵀ / N,    g_t = ∂ Σ_s -log p(ŷ_s | x) / ∂y_t,    ŷ_s ~ p(· | x),

y_t = W x_t (+ b) what an output projection (attention's or the MLP's) gives for token t, and N the tokens that have a
loss. As labels are drawn from the model's softmax, independently, E[Γ] is the diagonal block of the Fisher matrix at
these outputs: if y is disturbed by δy, the mean loss rises by about ½ tr(Γ E[δy δyᵀ]) (Martens and Grosse,
arXiv:1503.05671: independence of δy and g, no interaction between tokens or sub-blocks).

Where a norm stands behind the sub-block, Γ is that of the output before it: the gradient comes through the norm. An
expert's output is y before it is weighted by the router, and its Γ sums over the tokens that were routed to it.

A decoder's blocks run one at a time (`block_by_block`): a forward pass, a second one in the blocks, a backward pass,
the memory of one block. An encoder–decoder model runs as a whole, its blocks checkpointed. Shapes: D hidden, E experts.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block, SubBlock
from tracenas.models.functionals.loss import predicted_tokens
from tracenas.models.functionals.sampled_labels import sampled_label_nll
from tracenas.models.surgery.ordering import Key, weight_holder
from tracenas.models.surgery.recomputed import recomputed
from tracenas.refits.gram_sum import GramSum
from tracenas.saliency.backwards import block_by_block

__all__ = ["fisher_matrices"]


def fisher_matrices(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, generator: torch.Generator
) -> Iterator[tuple[Key, Tensor]]:
    """Γ of every sub-block that has units, float32 [D, D] ([E, D, D] of fused experts), the last block first.

    Args:
        model: a frozen causal language model or encoder–decoder, in any dtype.
        blocks: where its units live.
        tokens: int64 [N, T] on the model's device.
        micro_batch: sequences per pass; the result depends on it by rounding only.
        generator: what labels are drawn by.

    Raises:
        UserError: if a gradient is not finite.
    """
    predicted = predicted_tokens(model, tokens.shape[1])
    uniforms = torch.rand(tokens.shape[0], predicted, generator=generator, dtype=torch.float64, device=generator.device)
    draws = iter(uniforms.split(micro_batch))

    def functional(net: Any, batch: Tensor) -> Tensor:
        return sampled_label_nll(net, batch, next(draws))

    def watch(index: int, undo: ExitStack) -> dict[Key, list[GramSum]]:
        return _watched(model, blocks, index, undo)

    if blocks[0].stack:
        walk = _together(model, blocks, tokens.split(micro_batch), functional, watch)
    else:
        walk = block_by_block(model, blocks, tokens, micro_batch, functional, watch)
    for sums in walk:
        for key in list(sums):
            yield key, _finished(key, sums.pop(key), tokens.shape[0] * predicted, blocks)


def _together(
    model: Any,
    blocks: Sequence[Block],
    batches: Sequence[Tensor],
    functional: Callable[[Any, Tensor], Tensor],
    watch: Callable[[int, ExitStack], dict[Key, list[GramSum]]],
) -> Iterator[dict[Key, list[GramSum]]]:
    """Every block's sums, the last block first, from backward passes of the model with its blocks checkpointed."""
    with ExitStack() as undo:
        sums = [watch(index, undo) for index in range(len(blocks))]
        for block in blocks:
            undo.enter_context(recomputed(model.get_submodule(block.path)))
        for first in {block.stack: block for block in reversed(blocks)}.values():
            module = model.get_submodule(first.path)
            undo.callback(module.register_forward_pre_hook(_differentiate, with_kwargs=True).remove)
        with torch.enable_grad():
            for batch in batches:
                functional(model, batch).backward()
    yield from reversed(sums)


def _differentiate(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Let what enters a block have a gradient: the weights before it have none."""
    (args[0] if args else kwargs["hidden_states"]).requires_grad_()


def _watched(model: Any, blocks: Sequence[Block], index: int, undo: ExitStack) -> dict[Key, list[GramSum]]:
    """Sums of g gᵀ at the outputs of a block, filled by its backward passes until the stack closes."""
    block = blocks[index]
    sums: dict[Key, list[GramSum]] = {}
    for sub in block.sub_blocks:
        if not sub.spec.units:
            continue
        projection = sub.output_projection
        module, _ = weight_holder(model, block, projection)
        device = next(iter(model.parameters())).device
        totals = [GramSum(projection.rows, device) for _ in range(projection.stack or 1)]
        hook = _experts_hook(totals) if sub.stacked else _linear_hook(totals[0])
        undo.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        sums[index, sub.spec.name] = totals
    return sums


def _linear_hook(total: GramSum) -> Callable[..., None]:
    """Adds the gradients at a linear module's output."""

    def add(gradient: Tensor) -> None:
        total.add(_wide(gradient.flatten(0, -2)))

    def hook(_: Any, __: Any, ___: Any, output: Tensor) -> None:
        output.register_hook(add)

    return hook


def _experts_hook(totals: Sequence[GramSum]) -> Callable[..., None]:
    """Adds the gradients at every expert's output: those of the weighted sum, times the token's weight."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        names = ("hidden_states", "top_k_index", "top_k_weights")
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        chosen, weights = call["top_k_index"], call["top_k_weights"].detach()

        def add(gradient: Tensor) -> None:
            for expert, total in enumerate(totals):
                token, place = (chosen == expert).nonzero(as_tuple=True)
                if len(token):
                    total.add(_wide(gradient[token]) * _wide(weights[token, place, None]))

        output.register_hook(add)

    return hook


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _finished(key: Key, totals: list[GramSum], count: int, blocks: Sequence[Block]) -> Tensor:
    """Γ in float32.

    Raises:
        UserError: if it is not finite.
    """
    sub: SubBlock = next(s for s in blocks[key[0]].sub_blocks if s.spec.name == key[1])
    matrices = [(total.total() / count).float() for total in totals]
    if not all(torch.isfinite(matrix).all() for matrix in matrices):
        raise UserError(f"block {key[0]}, {key[1]}: gradients of the loss are not finite; try dtype=fp32")
    return torch.stack(matrices) if sub.stacked else matrices[0]
