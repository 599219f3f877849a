"""Refitting a candidate layer by layer, on the inputs that the already refitted layers give.

For every sub-block in forward order, with X' its output projection's inputs in the pruned model as refitted so far
and Y the dense sub-block's output on the dense model's own inputs,

    W_k = argmin ‖X' W_kᵀ - Y‖² + λ‖W_k - W⁰_k‖²,   W_kᵀ = W⁰_kᵀ + (X'ᵀX' + λI)⁻¹ X'ᵀ(Y - X' W⁰_kᵀ),

λ = ridge · mean diagonal of X'ᵀX'. Two streams of hidden states, dense and pruned, go forward block by block: the
dense blocks run once, a pruned block up to the output projection of each of its sub-blocks, then once to its end.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import SubBlock
from tracenas.models.ordering import Key
from tracenas.models.refit import FittedRealisation, solve, strength
from tracenas.models.stepping import BlockRunner, Stop, watch
from tracenas.models.supernet import Supernet
from tracenas.space.architecture import Architecture, Layer

__all__ = ["sequential_outputs"]


def sequential_outputs(
    net: Supernet, arch: Architecture, tokens: Tensor, micro_batch: int, ridge: float
) -> dict[Key, Tensor]:
    """Output projections of every active sub-block, refitted in forward order, in the weights' dtype.

    Full-width sub-blocks behind a pruned one are refitted too: their inputs have changed. Memory: three times
    the hidden states of all tokens, and one Gram matrix of the kept columns in float64.

    Args:
        net: the super-network.
        arch: the candidate.
        tokens: int64 [N, L].
        micro_batch: sequences per forward pass.
        ridge: λ relative to the mean diagonal; positive.

    Returns:
        [rows, kept columns] per (block, sub-block), columns in the super-network's order.

    Raises:
        UserError: if an activation is not finite.
    """
    runner = BlockRunner(net.model, net.blocks)
    dense = runner.embed(tokens, micro_batch)
    pruned = list(dense)
    fitted: dict[Key, Tensor] = {}
    for index, layer in enumerate(arch.layers):
        active = _active(net, index, layer)
        targets = _advance_dense(net, runner, index, dense, active)
        for sub in active:
            key = (index, sub.spec.name)
            fitted[key] = _fit(net, runner, key, sub, layer, fitted, pruned, targets.pop(sub.spec.name), ridge)
        with net.realise_block(index, layer, FittedRealisation(fitted)):
            for i, states in enumerate(pruned):
                pruned[i] = runner(index, states)
    return fitted


def _active(net: Supernet, index: int, layer: Layer) -> list[SubBlock]:
    if layer.skip:
        return []
    pairs = zip(net.blocks[index].sub_blocks, layer.kept, strict=True)
    return [sub for sub, (_, kept) in pairs if sub.spec.units and kept]


def _advance_dense(
    net: Supernet, runner: BlockRunner, index: int, dense: list[Tensor], active: list[SubBlock]
) -> dict[str, list[Tensor]]:
    """Move the dense stream over block `index`; the outputs of its active sub-blocks' output projections."""
    targets: dict[str, list[Tensor]] = {sub.spec.name: [] for sub in active}

    def keep(name: str) -> Callable[[Tensor, Tensor], None]:
        return lambda _, output: targets[name].append(output)

    with ExitStack() as watching:
        for sub in active:
            module = net.linear((index, sub.spec.name), sub.projection(sub.output))
            watching.enter_context(watch(module, keep(sub.spec.name)))
        for i, states in enumerate(dense):
            dense[i] = runner(index, states)
    return targets


def _fit(
    net: Supernet,
    runner: BlockRunner,
    key: Key,
    sub: SubBlock,
    layer: Layer,
    fitted: dict[Key, Tensor],
    pruned: list[Tensor],
    target: list[Tensor],
    ridge: float,
) -> Tensor:
    """W_k of one sub-block; the block runs plain from this sub-block on, as fitted before it."""
    module = net.linear(key, sub.projection(sub.output))
    sums: list[Tensor] = []
    wanted = iter(target)

    def see(x: Tensor, output: Tensor) -> None:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        missing = (next(wanted) - output).to(wide.dtype)
        parts = (wide.T @ wide, wide.T @ missing)
        if not sums:
            sums.extend(part.double() for part in parts)
        else:
            for total, part in zip(sums, parts, strict=True):
                total += part
        raise Stop

    with net.realise_block(key[0], layer, FittedRealisation(fitted)), watch(module, see):
        start = module.weight.detach()
        for states in pruned:
            try:
                runner(key[0], states)
            except Stop:
                continue
    gram, cross = sums
    if not torch.isfinite(gram.diagonal().sum() + cross.sum()):
        raise UserError(f"block {key[0]}, {key[1]}: the activations are not finite; try dtype=fp32")
    change = solve(gram, cross, strength(gram, ridge)).T
    return (start.double() + change).to(start.dtype)
