"""The compensated realisation: prefix views, with output projections refitted to the dense sub-blocks' outputs.

Every candidate's refit comes from one Cholesky factor per sub-block. Columns are put into prefix order: those of
no unit, then the best unit of every group, then the second of every group, …, so that every width keeps a prefix
k of them. With G + λI = L Lᵀ the factor of the kept block is the leading block of L, and

    W_kᵀ = W⁰_kᵀ + L_kk⁻ᵀ (L_Rkᵀ W_Rᵀ) = L_kk⁻ᵀ (Lᵀ Wᵀ)_k,

because G_kk + λI = L_kk L_kkᵀ, G_kR = L_kk L_Rkᵀ and (Lᵀ Wᵀ)_k = L_kkᵀ W⁰_kᵀ + L_Rkᵀ W_Rᵀ (R the removed columns).
The inverse of the leading block is the leading block of L⁻¹, so with V = W L the refit is a sum over columns j,

    W_k = Σ_{j ∈ k} V_j (L⁻¹)_jk = W⁰_k - Σ_{j ∈ R} V_j (L⁻¹)_jk,

whose terms are what a column brings when it is added to those before it, and takes when it is removed. V and L⁻¹ are
made once, in float64; a width is the shorter of the two sums, one product of 2 k min(k, |R|) D operations in the
weights' precision: half a float64 triangular solve at most, and exact where next to nothing is removed.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenas.families import Projection, SubBlock, present
from tracenas.families.description import IntArray
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.paging import Keep, in_memory
from tracenas.refits.costs import MEMO_BYTES
from tracenas.refits.ridge import strength
from tracenas.resident import give_back

__all__ = ["CompensatedRealisation", "prefix_order"]

_SMALL = 64
"""Columns below which a triangular matrix is inverted at once."""


def prefix_order(sub: SubBlock) -> IntArray:
    """Columns of the output projection, in saliency order, such that every width keeps a prefix, int64 [n].

    The width k keeps the first k / groups units of every group; so columns are sorted by their unit's rank
    within its group, columns of no unit first.
    """
    owner = sub.output_projection.unit_ids(1, sub.spec.units)
    rank = np.where(owner < 0, -1, owner % (sub.spec.units // sub.groups))
    return np.argsort(rank, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class _Factor:
    """One sub-block's L⁻¹, lower triangular [n, n], and V = W L [D, n] in prefix order; the order's columns [n]."""

    inverse: Tensor
    mixed: Tensor
    order: Tensor

    @property
    def bytes(self) -> int:
        """Memory taken."""
        return sum(t.numel() * t.element_size() for t in (self.inverse, self.mixed, self.order))


class CompensatedRealisation(Realisation):
    """Prefix views, but output projections are refitted on the dense model's statistics (one pass, all candidates).

    At full width, and in everything but the output projections' weights, it equals the plain realisation; biases
    stay as they are. Factors live in host memory, in float32 (float64 for a float64 model): 4 n (n + D) bytes per
    sub-block; products run on the model's device.

    Args:
        net: the super-network; its weights are read, never written.
        grams: float64 [n, n] per (block, sub-block), columns in the super-network's (saliency) order, as
            `gram_matrices` of `net.model` has them; used one after the other and not kept.
        ridge: λ relative to the mean diagonal of each Gram matrix; positive.
        memo_bytes: refitted projections of the widths used last that are remembered.
        keep: where the factors lie.

    Raises:
        ValueError: if a Gram matrix is missing or has another shape.
    """

    def __init__(
        self,
        net: Supernet,
        grams: Iterable[tuple[Key, Tensor]],
        ridge: float,
        *,
        memo_bytes: int = MEMO_BYTES,
        keep: Keep = in_memory,
    ) -> None:
        self.ridge, self.memo_bytes = ridge, memo_bytes
        self.memo_used = 0
        self._memo: OrderedDict[tuple[Key, int], Tensor] = OrderedDict()
        self._factors: dict[Key, _Factor] = {}
        subs = {key: sub for key, sub in present(net.blocks) if not sub.stacked}
        for key, gram in grams:
            self._factors[key] = _factor(net, key, subs[key], gram, ridge, keep)
            if keep is not in_memory:
                give_back()
        if missing := [key for key in subs if key not in self._factors]:
            raise ValueError(f"no Gram matrix of block {missing[0][0]}, {missing[0][1]}")

    def __getstate__(self) -> dict[str, Any]:
        """What is remembered stays with the process that has made it."""
        return {**self.__dict__, "_memo": OrderedDict(), "memo_used": 0}

    @property
    def factor_bytes(self) -> int:
        """Host memory that the factors take."""
        return sum(f.bytes for f in self._factors.values())

    def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
        """The refitted output projection, [rows, kept columns]; any other projection as in the plain realisation."""
        if projection.path != sub.output or kept == sub.spec.units or projection.stack:
            return super().weight(net, key, sub, projection, kept)
        name = (key, kept)
        if name in self._memo:
            self._memo.move_to_end(name)
            return self._memo[name]
        weight = net.linear(key, projection).weight
        columns = net.cut(sub, projection, 1, kept).length
        fitted = _fit(self._factors[key], weight, columns)
        self._remember(name, fitted)
        return fitted

    def forget(self, memo_bytes: int) -> None:
        """Drop the projections that are remembered, and remember so many bytes from now on."""
        self._memo.clear()
        self.memo_used, self.memo_bytes = 0, memo_bytes

    def _remember(self, name: tuple[Key, int], weight: Tensor) -> None:
        size = weight.numel() * weight.element_size()
        if size > self.memo_bytes:
            return
        while self.memo_used + size > self.memo_bytes:
            _, oldest = self._memo.popitem(last=False)
            self.memo_used -= oldest.numel() * oldest.element_size()
        self._memo[name] = weight
        self.memo_used += size


def _factor(net: Supernet, key: Key, sub: SubBlock, gram: Tensor, ridge: float, keep: Keep) -> _Factor:
    projection = sub.output_projection
    if gram.shape != (projection.columns, projection.columns):
        raise ValueError(f"block {key[0]}, {key[1]}: {projection.columns} columns, Gram matrix {list(gram.shape)}")
    order = torch.from_numpy(prefix_order(sub))
    index = order.to(gram.device)
    shifted = gram.double()[index][:, index]
    shifted.diagonal().add_(strength(gram, ridge))
    return _factorised(shifted, net.linear(key, projection).weight, order, keep)


def _factorised(shifted: Tensor, weight: Tensor, order: Tensor, keep: Keep) -> _Factor:
    """From G + λI [n, n] in prefix order, which is lost, and W [D, n] in its own."""
    lower = torch.linalg.cholesky(shifted, out=shifted)
    mixed = weight.to(lower.device)[:, order.to(lower.device)].double() @ lower
    stored = torch.promote_types(weight.dtype, torch.float32)
    _invert(lower)
    return _Factor(keep(lower.cpu(), stored), keep(mixed.cpu(), stored), order)


def _invert(lower: Tensor) -> None:
    """Put the inverse of a lower triangular matrix in its place, by halves: 2/3 n³ operations, nearly all products."""
    n = lower.shape[0]
    if n <= _SMALL:
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        lower.copy_(torch.linalg.solve_triangular(lower, unit, upper=False))
        return
    half = n // 2
    first, mixed, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert(first)
    _invert(second)
    mixed.copy_(-second @ (mixed @ first))


def _fit(factor: _Factor, weight: Tensor, kept: int) -> Tensor:
    """W_k [D, k] in the weight's dtype, columns in ascending (saliency) order."""
    stored, device = factor.mixed.dtype, weight.device
    shorter = slice(kept, None) if 2 * kept >= weight.shape[1] else slice(kept)
    change = factor.mixed[:, shorter].to(device) @ factor.inverse[shorter, :kept].to(device)
    order = factor.order[:kept].to(device)
    prefix = weight[:, order].to(stored) - change if shorter.start else change
    fitted: Tensor = prefix[:, order.argsort()].to(weight.dtype)
    return fitted
