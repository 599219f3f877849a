"""Gradient traces (TraceNAS §3.4): g = E_b ∇_θ L in the low-rank subspace, per sub-block, without adapters.

LoRA with B = 0 leaves the function untouched and has ∂L/∂A = 0 and ∂L/∂B = δyᵀ (x Aᵀ): the full gradient
projected by A. So nothing runs beside the model: z = x Aᵀ is kept in the forward pass and δyᵀ z is added up in
the backward pass. No weight gradient of the base is ever formed.

The fused matrices of experts are the exception: no module of their own multiplies by them.

Shapes: T tokens of a micro-batch, r rank, [rows, r] one projection's trace (A = I: [rows, columns]), of experts
[stack, rows, r].
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Projection, SubBlock, active
from tracenas.models.surgery.ordering import Key, permutation
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies.measurement import SubBlockSums
from tracenas.space.architecture import Architecture

__all__ = ["Trace", "TraceRecorder", "base_subspace", "correlation_sums"]

FULL = 0
"""Rank that stands for A = I."""


@dataclass
class Trace:
    """Accumulated trace of one model: fp32 [kept rows, rank] per (block, projection path)."""

    parts: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def divide(self, scale: float) -> None:
        """Undo what the loss was multiplied by."""
        for part in self.parts.values() if scale != 1 else ():
            part.div_(scale)


class TraceRecorder:
    """Takes traces of a super-network's candidates.

    Args:
        net: the super-network.
        rank: columns of A per projection input; 0 for A = I (exact gradients).
        seed: A is drawn from it in base coordinates, U(-1/√in, 1/√in) as peft initialises LoRA's A, one A per
            projection input (q, k and v share theirs, so x Aᵀ is computed once).
    """

    def __init__(self, net: Supernet, rank: int, seed: int) -> None:
        self.net = net
        self.rank = rank
        self.seed = seed
        self._subspaces: dict[tuple[int, str], Tensor] = {}
        if rank != FULL:
            for index, block in enumerate(net.blocks):
                for sub in block.sub_blocks:
                    for projection in sub.projections if sub.spec.units else ():
                        self._subspaces.setdefault((index, projection.source), self._draw(index, sub, projection))

    def _draw(self, index: int, sub: SubBlock, projection: Projection) -> Tensor:
        """A, [rank, columns], columns in saliency order where they are units; [stack, rank, columns] of experts."""
        a = base_subspace(self.seed, index, projection, self.rank)
        order = permutation(projection, 1, self.net.ordering.ranking[index, sub.spec.name])
        if order is not None:
            a = a[:, torch.from_numpy(order)]
            a = a.movedim(-2, 0) if projection.stack else a  # the same A, in every expert's own order
        weight = self.net.weight((index, sub.spec.name), projection)
        drawn: Tensor = a.to(device=self.net.device, dtype=weight.dtype)
        return drawn.contiguous()

    @contextmanager
    def record(self, arch: Architecture) -> Iterator[Trace]:
        """Add up the trace of every backward pass run inside, for a model realised as `arch`."""
        trace, handles = Trace(), list[Any]()
        last: list[tuple[tuple[int, str], Tensor, Tensor]] = []
        for index, sub, kept in active(self.net.blocks, arch):
            for projection in sub.projections:
                key = (index, sub.spec.name)
                rows = self.net.cut(sub, projection, 0, kept).length
                columns = self.net.cut(sub, projection, 1, kept)
                source = (index, projection.source)
                a = columns.take(self._subspaces[source], -1) if self.rank != FULL else None
                stack = (projection.stack,) if projection.stack else ()
                accumulator = torch.zeros(*stack, rows, self.rank or columns.length, device=self.net.device)
                trace.parts[index, projection.path] = accumulator
                if projection.stack:
                    handles.append(_StackWatch(self.net.weight(key, projection), a, accumulator))
                else:
                    module = self.net.linear(key, projection)
                    handles.append(module.register_forward_hook(_hook(a, accumulator, source, last)))
        try:
            yield trace
        finally:
            for handle in handles:
                handle.remove()


class _StackWatch:
    """Takes the trace of experts' fused matrices, which are multiplied inside one module.

    Here a weight gradient is formed, of one layer's experts at a time, and given up as soon as it is projected.
    """

    def __init__(self, weight: Tensor, a: Tensor | None, accumulator: Tensor) -> None:
        def add(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            accumulator.add_(gradient if a is None else gradient @ a.mT)
            parameter.grad = None

        self.weight = weight.requires_grad_(True)
        self.handle = weight.register_post_accumulate_grad_hook(add)

    def remove(self) -> None:
        """Watch no longer."""
        self.handle.remove()
        self.weight.requires_grad_(False)


def base_subspace(seed: int, block: int, projection: Projection, rank: int) -> Tensor:
    """A of one projection input in base coordinates, float32 [rank, columns]."""
    source = sum(ord(c) * 131**i for i, c in enumerate(projection.source)) % (1 << 31)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) * 2_147_483_659 % (1 << 62) + source)
    bound = projection.columns**-0.5
    drawn: Tensor = (torch.rand(rank, projection.columns, generator=generator) * 2 - 1) * bound
    return drawn


def _hook(
    a: Tensor | None,
    accumulator: Tensor,
    source: tuple[int, str],
    last: list[tuple[tuple[int, str], Tensor, Tensor]],
) -> Any:
    """Forward hook of one projection; `last` holds the latest (source, x, x Aᵀ), so q, k and v compute it once."""

    def forward(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if last and last[0][0] == source and last[0][1] is x:
            z = last[0][2]
        else:
            flat = x.detach().reshape(-1, x.shape[-1])
            z = flat if a is None else flat @ a.T
            last[:] = [(source, x, z)]
        if not output.requires_grad:
            output.requires_grad_(True)

        def backward(gradient: Tensor) -> None:
            _add_product(accumulator, gradient.reshape(-1, gradient.shape[-1]), z)

        output.register_hook(backward)
        return output

    return forward


def _add_product(accumulator: Tensor, dy: Tensor, z: Tensor) -> None:
    """accumulator += dyᵀ z, accumulated in fp32."""
    if dy.dtype == torch.float32:
        accumulator.addmm_(dy.T, z)
    elif dy.is_cuda:
        accumulator += torch.mm(dy.T, z, out_dtype=torch.float32)
    else:
        accumulator.addmm_(dy.T.float(), z.float())


@dataclass(frozen=True)
class _BaseSums:
    count: int
    b: float
    bb: float


def _base_sums(sub: SubBlock, index: int, base: Trace) -> _BaseSums:
    parts = [base.parts[index, p.path].double() for p in sub.projections]
    return _BaseSums(
        sum(p.numel() for p in parts),
        sum(float(p.sum()) for p in parts),
        sum(float(p.square().sum()) for p in parts),
    )


def correlation_sums(
    net: Supernet, arch: Architecture, trace: Trace, base: Trace, cache: dict[Key, _BaseSums] | None = None
) -> dict[Key, SubBlockSums]:
    """The sums of every active sub-block, in float64 (decision 5).

    Args:
        trace: of the candidate; base: of the base model, in the same order of coordinates.
        cache: the base's own sums, filled on first use.
    """
    cache = {} if cache is None else cache
    out: dict[Key, SubBlockSums] = {}
    for index, sub, kept in active(net.blocks, arch):
        key = (index, sub.spec.name)
        if key not in cache:
            cache[key] = _base_sums(sub, index, base)
        g = gg = gb = 0.0
        for projection in sub.projections:
            part = trace.parts[index, projection.path].double()
            anchor = net.cut(sub, projection, 0, kept).take(base.parts[index, projection.path], -2)
            if anchor.shape[-1] != part.shape[-1]:
                anchor = net.cut(sub, projection, 1, kept).take(anchor, -1)
            g += float(part.sum())
            gg += float(part.square().sum())
            gb += float((part * anchor).sum())
        own = cache[key]
        out[key] = SubBlockSums(own.count, g, gg, own.b, own.bb, gb, kept / sub.spec.units)
    return out
