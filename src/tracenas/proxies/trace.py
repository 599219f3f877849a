"""Gradient traces (TraceNAS §3.4): g = E_b ∇_θ L in the low-rank subspace, per sub-block, without adapters.

LoRA with B = 0 leaves the function untouched and has ∂L/∂A = 0 and ∂L/∂B = δyᵀ (x Aᵀ): the full gradient
projected by A. So nothing runs beside the model: z = x Aᵀ is kept in the forward pass and δyᵀ z is added up in
the backward pass. No weight gradient of the base is ever formed.

The fused matrices of experts are the exception: no module of their own multiplies by them.

Shapes: T tokens of a micro-batch, r rank, [rows, r] one projection's trace (A = I: [rows, columns]), of experts
[stack, rows, r].
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tracenas.families import Projection, SubBlock, active, present
from tracenas.models.surgery.gradients import watch_output_gradient, watch_weight_gradient
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
            for key, sub in present(net.blocks):
                for projection in sub.projections:
                    self._subspaces.setdefault((key[0], projection.source), self._draw(key, projection))

    def _draw(self, key: Key, projection: Projection) -> Tensor:
        """A, [rank, columns], columns in saliency order where they are units; [stack, rank, columns] of experts."""
        a = base_subspace(self.seed, key[0], projection, self.rank)
        order = permutation(projection, 1, self.net.ordering.ranking[key])
        if order is not None:
            a = a[:, torch.from_numpy(order)]
            a = a.movedim(-2, 0) if projection.stack else a  # the same A, in every expert's own order
        drawn: Tensor = a.to(device=self.net.device, dtype=self.net.weight(key, projection).dtype)
        return drawn.contiguous()

    @contextmanager
    def record(self, arch: Architecture) -> Iterator[Trace]:
        """Add up the trace of every backward pass run inside, for a model realised as `arch`."""
        trace = Trace()
        last: list[tuple[tuple[int, str], Tensor, Tensor]] = []
        with ExitStack() as watching:
            for index, sub, kept in active(self.net.blocks, arch):
                for projection in sub.projections:
                    key, source = (index, sub.spec.name), (index, projection.source)
                    rows = self.net.cut(sub, projection, 0, kept).length
                    columns = self.net.cut(sub, projection, 1, kept)
                    a = columns.take(self._subspaces[source], -1) if self.rank != FULL else None
                    stack = (projection.stack,) if projection.stack else ()
                    accumulator = torch.zeros(*stack, rows, self.rank or columns.length, device=self.net.device)
                    trace.parts[index, projection.path] = accumulator
                    if projection.stack:
                        # A weight gradient, of one layer's experts at a time, given up as soon as it is projected.
                        add = partial(_add_projected, a, accumulator)
                        watch_weight_gradient(self.net.weight(key, projection), add, watching)
                    else:
                        enter = partial(_enter, a, accumulator, source, last)
                        watching.enter_context(watch_output_gradient(self.net.linear(key, projection), enter))
            yield trace


def base_subspace(seed: int, block: int, projection: Projection, rank: int) -> Tensor:
    """A of one projection input in base coordinates, float32 [rank, columns]."""
    source = sum(ord(c) * 131**i for i, c in enumerate(projection.source)) % (1 << 31)
    generator = torch.Generator().manual_seed((seed * 1_000_003 + block) * 2_147_483_659 % (1 << 62) + source)
    bound = projection.columns**-0.5
    drawn: Tensor = (torch.rand(rank, projection.columns, generator=generator) * 2 - 1) * bound
    return drawn


def _enter(
    a: Tensor | None,
    accumulator: Tensor,
    source: tuple[int, str],
    last: list[tuple[tuple[int, str], Tensor, Tensor]],
    x: Tensor,
) -> Callable[[Tensor], None]:
    """One projection's part; `last` holds the latest (source, x, x Aᵀ), so q, k and v compute it once."""
    if last and last[0][0] == source and last[0][1] is x:
        z = last[0][2]
    else:
        flat = x.detach().reshape(-1, x.shape[-1])
        z = flat if a is None else flat @ a.T
        last[:] = [(source, x, z)]
    return lambda gradient: _add_product(accumulator, gradient.reshape(-1, gradient.shape[-1]), z)


def _add_projected(a: Tensor | None, accumulator: Tensor, gradient: Tensor) -> None:
    accumulator.add_(gradient if a is None else gradient @ a.mT)


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
    found: dict[Key, tuple[Tensor, float]] = {}
    for index, sub, kept in active(net.blocks, arch):
        key = (index, sub.spec.name)
        if key not in cache:
            cache[key] = _base_sums(sub, index, base)
        total = torch.zeros(3, dtype=torch.float64, device=net.device)
        for projection in sub.projections:
            part = trace.parts[index, projection.path].double()
            anchor = net.cut(sub, projection, 0, kept).take(base.parts[index, projection.path], -2)
            if anchor.shape[-1] != part.shape[-1]:
                anchor = net.cut(sub, projection, 1, kept).take(anchor, -1)
            total += torch.stack([part.sum(), part.square().sum(), (part * anchor).sum()])
        found[key] = total, kept / sub.spec.units
    # From a device everything comes at once: hundreds of single numbers would be waited for one by one.
    sums = torch.stack([total for total, _ in found.values()]).tolist() if found else []
    out: dict[Key, SubBlockSums] = {}
    for (key, (_, retention)), (g, gg, gb) in zip(found.items(), sums, strict=True):
        anchored = cache[key]
        out[key] = SubBlockSums(anchored.count, g, gg, anchored.b, anchored.bb, gb, retention)
    return out
