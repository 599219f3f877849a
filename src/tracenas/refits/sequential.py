"""Refitting a candidate layer by layer, on the inputs that the already refitted layers give.

For every sub-block in forward order, with X' its output projection's inputs in the pruned model as refitted so far,

    W_k = argmin ‖X' W_kᵀ - T‖² + λ‖W_k - W⁰_k‖²,   W_kᵀ = W⁰_kᵀ + (X'ᵀX' + λI)⁻¹ X'ᵀ(T - X' W⁰_kᵀ),

λ = ridge · mean diagonal of X'ᵀX', or another penalty. The target T is the dense sub-block's output Y on the dense
model's own inputs, plus a share d of what the pruned model's residual stream still lacks in front of the sub-block:
T = Y + d (R - R'). With d = 1 every refit aims at the dense model's hidden states and takes up all errors of those
before it; a smaller share fits less of the noise of short text. Streams of hidden states go forward block by block, the
dense one and one for every aim (λ, d): the dense blocks run once, a pruned block up to the output projection of each of
its sub-blocks, then once to its end.

Where an RMS norm stands behind the sub-block, its output reaches the stream as s g ⊙ Y: a scale s for every token, a
gain g for every feature. With the scales of the dense outputs the problem stays linear, and the target stands behind
the norm: rows are weighted by s, X' → s X', and

    T = s Y + d g ⊙ (R - R') / (g² + 0.01 · mean g²),

so that every token counts as it does in the stream, and a feature of next to no gain does not take up a gap that it
cannot fill.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tracenas.errors import UserError
from tracenas.families import SubBlock, within
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.stepping import BlockRunner, Stop, watch
from tracenas.models.surgery.supernet import Supernet
from tracenas.refits.aim import Aim
from tracenas.refits.gram_sum import GramSum
from tracenas.refits.ridge import FittedRealisation, Penalty, solve, strength
from tracenas.space.architecture import Architecture, Layer

__all__ = ["sequential_outputs"]

_DAMPING = 0.01
"""Of gains behind a norm, relative to their mean square."""


def sequential_outputs(
    net: Supernet,
    arch: Architecture,
    tokens: Tensor,
    micro_batch: int,
    aims: Sequence[Aim],
    *,
    penalty: Penalty = strength,
    until: int | None = None,
) -> dict[Aim, dict[Key, Tensor]]:
    """Output projections of every active sub-block, refitted in forward order, in the weights' dtype, per aim.

    Full-width sub-blocks behind a pruned one are refitted too: their inputs have changed. The dense model runs once for
    all aims. Memory: the hidden states of all tokens four times, and once more per aim, and one Gram matrix of the
    kept columns in float64.

    Args:
        net: the super-network.
        arch: the candidate.
        tokens: int64 [N, L].
        micro_batch: sequences per forward pass.
        aims: each is a refit of its own.
        penalty: λ of a Gram matrix and a ridge.
        until: blocks that are refitted, the first ones; None: all.

    Returns:
        [rows, kept columns] per (block, sub-block), columns in the super-network's order.

    Raises:
        UserError: if an activation is not finite.
    """
    runner = BlockRunner(net.model, net.blocks)
    dense = runner.embed(tokens, micro_batch)
    streams = {aim: list(dense) for aim in aims}
    fitted: dict[Aim, dict[Key, Tensor]] = {aim: {} for aim in aims}
    for index, layer in enumerate(arch.layers[:until]):
        before = list(dense)
        outputs, contributions = _advance_dense(net, runner, index, dense)
        if layer.skip:
            continue
        for aim, pruned in streams.items():
            gaps = [(d - p).flatten(0, -2) for d, p in zip(before, pruned, strict=True)] if aim.drift else None
            block = _BlockTargets(index, list(pruned), gaps, outputs, contributions)
            for sub, kept in within(net.blocks[index], layer):
                if sub.spec.units and kept and not sub.stacked:
                    key = index, sub.spec.name
                    fitted[aim][key] = _fit(net, runner, block, sub, layer, fitted[aim], aim, penalty)
            with net.realise_block(index, layer, FittedRealisation(fitted[aim])):
                runner.advance(index, pruned)
    return fitted


@dataclass(frozen=True)
class _BlockTargets:
    """One block's part of the problem; lists have an entry per micro-batch.

    Args:
        index: of the block.
        inputs: the pruned stream in front of the block, [B, T, D].
        gaps: dense minus pruned stream in front of the block, [B · T, D]; None if d is 0.
        outputs: of every sub-block's output projection in the dense model, [B · T, D].
        contributions: what these add to the dense stream: the same, or what the norm behind them makes of it.
    """

    index: int
    inputs: list[Tensor]
    gaps: list[Tensor] | None
    outputs: dict[str, list[Tensor]]
    contributions: dict[str, list[Tensor]]


def _advance_dense(
    net: Supernet, runner: BlockRunner, index: int, dense: list[Tensor]
) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
    """Move the dense stream over block `index`; `outputs` and `contributions` of its sub-blocks."""
    subs = [sub for sub in net.blocks[index].sub_blocks if sub.spec.units and not sub.stacked]
    contributions: dict[str, list[Tensor]] = {sub.spec.name: [] for sub in subs}
    outputs = {sub.spec.name: [] if sub.post_norm else contributions[sub.spec.name] for sub in subs}
    with ExitStack() as watching:
        watching.enter_context(
            _watching_contributions(net, index, subs, lambda name, value: contributions[name].append(value))
        )
        for sub in subs:
            if sub.post_norm:
                module, values = net.linear((index, sub.spec.name), sub.output_projection), outputs[sub.spec.name]
                watching.enter_context(watch(module, lambda _, output, values=values: values.append(output)))  # type: ignore[misc]
        runner.advance(index, dense)
    return outputs, contributions


@contextmanager
def _watching_contributions(
    net: Supernet, index: int, subs: list[SubBlock], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(sub-block, what it adds to the stream)` for every one of `subs` that runs."""
    with ExitStack() as watching:
        for sub in subs:
            module = _norm_behind(net, index, sub) or net.linear((index, sub.spec.name), sub.output_projection)
            watching.enter_context(watch(module, lambda _, value, name=sub.spec.name: see(name, value)))  # type: ignore[misc]
        yield


def _norm_behind(net: Supernet, index: int, sub: SubBlock) -> nn.Module | None:
    """The norm behind a sub-block, if there is one."""
    path = f"{net.blocks[index].path}.{sub.post_norm}"
    norm: nn.Module | None = net.model.get_submodule(path) if sub.post_norm else None
    return norm


class _PostNorm:
    """An RMS norm as the linear map y ↦ s g ⊙ y that it is on the dense outputs.

    Args:
        norm: the module; it makes its gain g of a row of ones.
        like: a tensor [D, …] of the norm's dtype and device.
    """

    def __init__(self, norm: nn.Module, like: Tensor) -> None:
        with torch.no_grad():
            self.gain: Tensor = norm(torch.ones_like(like[:, :1].T))[0]

    def scale(self, output: Tensor, contribution: Tensor) -> Tensor:
        """s of every token, [tokens, 1]; 0 where the output is 0."""
        wide = self.gain.to(output.dtype) * output
        size = wide.square().sum(1, keepdim=True)
        return (contribution * wide).sum(1, keepdim=True) / size.where(size > 0, torch.ones_like(size))

    def inverse(self, gap: Tensor) -> Tensor:
        """What has to be added in front of the norm, in units of 1/s, to fill `gap` behind it."""
        gain = self.gain.to(gap.dtype)
        square = gain.square()
        return gap * gain / (square + _DAMPING * square.mean())


def _fit(
    net: Supernet,
    runner: BlockRunner,
    block: _BlockTargets,
    sub: SubBlock,
    layer: Layer,
    fitted: dict[Key, Tensor],
    aim: Aim,
    penalty: Penalty,
) -> Tensor:
    """W_k of one sub-block; before it the block runs as fitted, and it is left behind the output projection."""
    index, name = block.index, sub.spec.name
    subs = [s for s in net.blocks[index].sub_blocks if s.spec.name in block.contributions]
    earlier = subs[: subs.index(sub)]
    seen: dict[str, Tensor] = {}
    with ExitStack() as running:
        running.enter_context(net.realise_block(index, layer, FittedRealisation(fitted)))
        module = net.linear((index, name), sub.output_projection)
        start = module.weight.detach()
        norm = _norm_behind(net, index, sub)
        behind = None if norm is None else _PostNorm(norm, start)
        gram = GramSum(start.shape[1], start.device)
        cross = torch.zeros(start.shape[1], start.shape[0], dtype=torch.float64, device=start.device)
        place = 0

        def lacking(dtype: torch.dtype) -> Tensor | None:
            """d times what the pruned stream lacks in front of the sub-block, [B · T, D]."""
            if block.gaps is None:
                return None
            gap = block.gaps[place].to(dtype, copy=True)
            for other in earlier:
                gap += block.contributions[other.spec.name][place] - seen.get(other.spec.name, 0)
            return gap.mul_(aim.drift)

        def see(x: Tensor, output: Tensor) -> None:
            rows = x.to(torch.promote_types(x.dtype, torch.float32))
            target, gap = block.outputs[name][place].to(rows.dtype), lacking(rows.dtype)
            missing = target - output
            if behind is not None:
                scale = behind.scale(target, block.contributions[name][place].to(rows.dtype))
                rows, missing, gap = scale * rows, scale * missing, None if gap is None else behind.inverse(gap)
            gram.add(rows)
            cross.add_(rows.T @ (missing if gap is None else missing + gap))
            raise Stop

        running.enter_context(_watching_contributions(net, index, earlier, seen.__setitem__))
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
    return (start.double() + solve(products, cross, penalty(products, aim.ridge)).T).to(start.dtype)
