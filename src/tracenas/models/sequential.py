"""Refitting a candidate layer by layer, on the inputs that the already refitted layers give.

For every sub-block in forward order, with X' its output projection's inputs in the pruned model as refitted so far,

    W_k = argmin ‖X' W_kᵀ - T‖² + λ‖W_k - W⁰_k‖²,   W_kᵀ = W⁰_kᵀ + (X'ᵀX' + λI)⁻¹ X'ᵀ(T - X' W⁰_kᵀ),

λ = ridge · mean diagonal of X'ᵀX'. The target T is the dense sub-block's output Y on the dense model's own inputs,
plus, where sub-blocks add to the residual stream as they are, what the pruned model's stream still lacks in front of
the sub-block: T = Y + (R - R'). So every refit aims at the dense model's hidden states and takes up the errors of
those before it. Two streams of hidden states, dense and pruned, go forward block by block: the dense blocks run once,
a pruned block up to the output projection of each of its sub-blocks, then once to its end.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import SubBlock, within
from tracenas.models.gram_sum import GramSum
from tracenas.models.ordering import Key
from tracenas.models.refit import FittedRealisation, solve, strength
from tracenas.models.stepping import BlockRunner, Stop, watch
from tracenas.models.supernet import Supernet
from tracenas.space.architecture import Architecture, Layer

__all__ = ["sequential_outputs"]


def sequential_outputs(
    net: Supernet, arch: Architecture, tokens: Tensor, micro_batch: int, ridge: float, *, stream: bool = True
) -> dict[Key, Tensor]:
    """Output projections of every active sub-block, refitted in forward order, in the weights' dtype.

    Full-width sub-blocks behind a pruned one are refitted too: their inputs have changed. Memory: five times
    the hidden states of all tokens, and one Gram matrix of the kept columns in float64.

    Args:
        net: the super-network.
        arch: the candidate.
        tokens: int64 [N, L].
        micro_batch: sequences per forward pass.
        ridge: λ relative to the mean diagonal; positive.
        stream: aim at the dense residual stream (T above); False: at the sub-block's output alone. Blocks
            whose outputs do not add to the stream as they are (norms behind them) do the latter anyway.

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
        block = _advance_dense(net, runner, index, dense, pruned, stream)
        if layer.skip:
            continue
        for sub, kept in within(net.blocks[index], layer):
            if sub.spec.units and kept and not sub.stacked:
                fitted[index, sub.spec.name] = _fit(net, runner, block, sub, layer, fitted, ridge)
        with net.realise_block(index, layer, FittedRealisation(fitted)):
            for i, states in enumerate(pruned):
                pruned[i] = runner(index, states)
    return fitted


@dataclass(frozen=True)
class _Block:
    """One block's part of the problem; lists have an entry per micro-batch.

    Args:
        index: of the block.
        inputs: the pruned stream in front of the block, [B, T, D].
        gaps: dense minus pruned stream in front of the block, [B · T, D]; None if the stream is no target.
        outputs: of every sub-block's output projection in the dense model, [B · T, D].
    """

    index: int
    inputs: list[Tensor]
    gaps: list[Tensor] | None
    outputs: dict[str, list[Tensor]]


def _advance_dense(
    net: Supernet, runner: BlockRunner, index: int, dense: list[Tensor], pruned: list[Tensor], stream: bool
) -> _Block:
    """Move the dense stream over block `index`, and note what its sub-blocks gave."""
    subs = [sub for sub in net.blocks[index].sub_blocks if sub.spec.units and not sub.stacked]
    outputs: dict[str, list[Tensor]] = {sub.spec.name: [] for sub in subs}
    before = list(dense)
    with _watching(net, index, subs, lambda name, output: outputs[name].append(output)):
        for i, states in enumerate(dense):
            dense[i] = runner(index, states)
    gaps = None
    if stream and _additive(before[0], dense[0], [values[0] for values in outputs.values()]):
        gaps = [(d - p).flatten(0, -2) for d, p in zip(before, pruned, strict=True)]
    return _Block(index, list(pruned), gaps, outputs)


@contextmanager
def _watching(net: Supernet, index: int, subs: list[SubBlock], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see(sub-block, output)` for every output projection among `subs` that runs."""
    with ExitStack() as watching:
        for sub in subs:
            module = net.linear((index, sub.spec.name), sub.projection(sub.output))
            watching.enter_context(watch(module, lambda _, output, name=sub.spec.name: see(name, output)))  # type: ignore[misc]
        yield


def _additive(before: Tensor, after: Tensor, outputs: list[Tensor]) -> bool:
    """Whether the block adds its output projections' outputs to the stream, up to the dtype's rounding."""
    start, end = before.flatten(0, -2).float(), after.flatten(0, -2).float()
    total, size = start.clone(), start.abs() + end.abs()
    for output in outputs:
        total += output.float()
        size += output.float().abs()
    rounding = max(torch.finfo(before.dtype).eps, torch.finfo(torch.float32).eps)
    wrong = (end - total).abs() > 4 * rounding * size
    return float(wrong.float().mean()) < 0.01


def _fit(
    net: Supernet,
    runner: BlockRunner,
    block: _Block,
    sub: SubBlock,
    layer: Layer,
    fitted: dict[Key, Tensor],
    ridge: float,
) -> Tensor:
    """W_k of one sub-block; before it the block runs as fitted, and it is left behind the output projection."""
    index, name = block.index, sub.spec.name
    names = [s.spec.name for s in net.blocks[index].sub_blocks if s.spec.units and not s.stacked]
    earlier = names[: names.index(name)]
    others = [s for s in net.blocks[index].sub_blocks if s.spec.name in earlier]
    seen: dict[str, Tensor] = {}
    with ExitStack() as running:
        running.enter_context(net.realise_block(index, layer, FittedRealisation(fitted)))
        module = net.linear((index, name), sub.projection(sub.output))
        start = module.weight.detach()
        gram = GramSum(start.shape[1], start.device)
        cross = torch.zeros(start.shape[1], start.shape[0], dtype=torch.float64, device=start.device)
        place = 0

        def see(x: Tensor, output: Tensor) -> None:
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            missing = block.outputs[name][place].to(wide.dtype) - output
            if block.gaps is not None:
                missing += block.gaps[place]
                for other in earlier:
                    missing += block.outputs[other][place] - seen.get(other, 0)
            gram.add(wide)
            cross.add_(wide.T @ missing)
            raise Stop

        running.enter_context(_watching(net, index, others, seen.__setitem__))
        running.enter_context(watch(module, see))
        for i, states in enumerate(block.inputs):
            place = i
            seen.clear()
            try:
                runner(index, states)
            except Stop:
                continue
    products = gram.total()
    if not torch.isfinite(products.diagonal().sum() + cross.sum()):
        raise UserError(f"block {index}, {name}: the activations are not finite; try dtype=fp32")
    return (start.double() + solve(products, cross, strength(products, ridge)).T).to(start.dtype)
