"""Every weight's gradient per sequence, reduced to a few numbers as soon as it is formed.

g_n = ∂L_n/∂W = N δyᵀx over the tokens of sequence n (δy is of the mean loss of all N). A gradient exists for one
matrix and a few sequences at a time. Beside it: the projections' inputs of a micro-batch, kept until its backward
pass; and, where a pair of sequences is parted by the end of a micro-batch (micro-batches of an odd size), one
gradient of the candidate's linear weights in the meantime.

Shapes: S sequences of a chunk, T tokens, R rows, C columns.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from tracenas.families import active, present
from tracenas.models.surgery.gradients import watch_output_gradient
from tracenas.models.surgery.streaming import streamed_blocks
from tracenas.proxies import WeightSums
from tracenas.scoring.observers.observer import Observer
from tracenas.space.architecture import Architecture

__all__ = ["WeightGradientObserver"]

_CHUNK_ELEMENTS = 1 << 19
"""Entries of the gradients that are reduced at once; a single pair's may be more."""


@dataclass
class _Totals:
    """Sums over the sequences so far, float64 scalars on the model's device."""

    weight: Tensor
    powers: Tensor
    """|W| and W², [R·C, 2]."""
    squares: Tensor
    saliency: Tensor
    scaled: Tensor
    softmax: Tensor
    ratios: list[Tensor] = field(default_factory=list)
    held: tuple[int, Tensor] | None = None
    """The first sequence of a pair whose second one is in the next micro-batch, and its gradient."""


class WeightGradientObserver(Observer):
    """Takes the sums of `WeightSums` of every active linear weight."""

    backward = True

    def unsupported(self) -> str | None:
        """The fused matrices of experts multiply inside one module, all sequences together."""
        if any(sub.stacked for _, sub in present(self.net.blocks)):
            return "weight gradients per sequence are not taken of fused experts"
        if streamed_blocks(self.net.model) is not None:
            return "weight gradients per sequence want all weights on the device (device-memory)"
        return None

    def hooks(self, arch: Architecture) -> Iterator[RemovableHandle]:
        """Reduce every backward pass's weight gradients."""
        self._totals: dict[tuple[int, str], _Totals] = {}
        for index, sub, _ in active(self.net.blocks, arch):
            for projection in sub.projections:
                module = self.net.linear((index, sub.spec.name), projection)
                totals = self._totals[index, projection.path] = _totals(module.weight.detach())
                yield watch_output_gradient(module, partial(self._enter, totals))

    def _enter(self, totals: _Totals, x: Tensor) -> Callable[[Tensor], None]:
        return partial(self._reduce, totals, x.detach(), self.first)

    def _reduce(self, totals: _Totals, x_BTC: Tensor, first: int, dy_BTR: Tensor) -> None:
        wide = torch.promote_types(dy_BTR.dtype, torch.float32)
        step = max(1, _CHUNK_ELEMENTS // totals.weight.numel())
        step += step % 2 if step > 1 else 0
        factor = len(self.tokens) / self.scale
        for start in range(0, len(dy_BTR), step):
            dy, x = dy_BTR[start : start + step].to(wide), x_BTC[start : start + step].to(wide)
            _add(totals, torch.bmm(dy.transpose(1, 2) * factor, x), first + start)

    def result(self, arch: Architecture) -> dict[str, Any]:
        """`weights`."""
        count, totals = len(self.tokens), self._totals
        self._totals = {}
        return {"weights": {key: _sums(t, count) for key, t in totals.items()}}


def _totals(weight: Tensor) -> _Totals:
    flat = weight.reshape(-1).to(torch.promote_types(weight.dtype, torch.float32))
    zero = torch.zeros((), dtype=torch.float64, device=weight.device)
    powers = torch.stack([flat.abs(), flat.square()], dim=1)
    return _Totals(weight, powers, powers[:, 1].sum(dtype=torch.float64), zero, zero.clone(), zero.clone())


def _add(totals: _Totals, g_SRC: Tensor, first: int) -> None:
    """Reduce the gradients of sequences `first`, `first` + 1, …"""
    size = g_SRC.abs().flatten(1)
    products = size @ totals.powers
    low, high = torch.aminmax(size, dim=1)
    spread = (high - low).double()
    scaled = (products[:, 1] - low * totals.squares.to(low)).double() / spread.where(spread > 0, 1.0)
    totals.saliency += products[:, 0].sum(dtype=torch.float64)
    totals.scaled += scaled.where(spread > 0, 0.0).sum()
    totals.softmax += torch.softmax(g_SRC, dim=1).square_().sum(dtype=torch.float64)
    flat = g_SRC.flatten(1)
    for at in range(len(flat)):
        number = first + at
        if number % 2 == 0:
            if at + 1 == len(flat):
                totals.held = (number, flat[at].clone())
        elif at > 0:
            totals.ratios.append(_ratio(flat[at - 1], flat[at]))
        elif totals.held is not None and totals.held[0] == number - 1:
            totals.ratios.append(_ratio(totals.held[1], flat[at]))
            totals.held = None


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Σ E|g|/σ(g) over the coordinates with σ > 0, of two gradients: (|a| + |b|) / |a - b|."""
    apart = (a - b).abs_()
    ratio = (a.abs() + b.abs()).div_(apart)
    return ratio.masked_fill_(apart == 0, 0.0).sum(dtype=torch.float64)


def _sums(totals: _Totals, count: int) -> WeightSums:
    entries = totals.weight.numel()
    return WeightSums(
        squares=float(totals.squares) / entries,
        saliency=float(totals.saliency) / count,
        scaled=float(totals.scaled) / count,
        softmax=float(totals.softmax) / (count * entries),
        ratios=tuple(torch.stack(totals.ratios).tolist()) if totals.ratios else (),
    )
