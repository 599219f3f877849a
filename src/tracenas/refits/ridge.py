"""Least-squares refits of output projections: the algebra, and weights that are given instead of cut.

A sub-block keeps the columns k of its output projection W and loses the columns R. With the Gram matrix
G = XᵀX of the projection's inputs,

    W_k = argmin ‖X_k W_kᵀ - X Wᵀ‖² + λ‖W_k - W⁰_k‖²,   W_kᵀ = W⁰_kᵀ + (G_kk + λI)⁻¹ G_kR W_Rᵀ,

W⁰_k the original columns. λ = ridge · mean diagonal of the whole G, or a penalty of `refits.penalty` with a λ for every
column. Shapes: n columns, k kept ones, D rows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.families import Projection, SubBlock, placed
from tracenas.models.surgery.ordering import Key
from tracenas.models.surgery.streaming import on_device, waiting
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.paging import Keep, in_memory
from tracenas.space.architecture import Architecture

__all__ = ["FittedRealisation", "Penalty", "fit_removed", "in_base_order", "ridge_outputs", "solve", "strength"]


Penalty = Callable[[Tensor, float], float | Tensor]
"""(G [n, n], relative strength) → λ, a number or [n]."""


@dataclass(frozen=True)
class FittedRealisation(Realisation):
    """Views of the base's weights, but for these output projections.

    Args:
        outputs: [rows, kept columns] per (block, sub-block), columns in the super-network's order.
    """

    outputs: Mapping[Key, Tensor]

    def weight(self, net: Supernet, key: Key, sub: SubBlock, projection: Projection, kept: int) -> Tensor:
        """The given output projection, if there is one, else the plain cut."""
        fitted = self.outputs.get(key) if projection.path == sub.output else None
        return super().weight(net, key, sub, projection, kept) if fitted is None else fitted.to(net.device)


def strength(gram: Tensor, ridge: float) -> float:
    """λ = `ridge` · mean diagonal of `gram`; 1 where that is 0 (inputs that are always 0 need no refit).

    Raises:
        ValueError: if `ridge` is not positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be positive, found {ridge}")
    return ridge * float(gram.diagonal().mean()) or 1.0


def solve(gram: Tensor, right: Tensor, strength: float | Tensor) -> Tensor:
    """(G + diag λ)⁻¹ B by Cholesky, float64; G [k, k] and B [k, D] stay as they are, λ is a number or [k]."""
    shifted = gram.clone()
    shifted.diagonal().add_(strength)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted, out=shifted))


def fit_removed(gram: Tensor, weight: Tensor, kept: Tensor, strength: float | Tensor) -> Tensor:
    """W_k [D, k] in float64 from the dense statistics.

    Args:
        gram: G, float64 [n, n].
        weight: W, [D, n], columns in G's order.
        kept: int64 [k], the columns that stay.
        strength: λ, absolute; a number, or [n].
    """
    keeps = torch.zeros(gram.shape[0], dtype=torch.bool, device=gram.device)
    keeps[kept] = True
    removed = keeps.int().argsort(stable=True)[: len(keeps) - len(kept)]  # nobody waits for how many there are
    wide = weight.double()
    right = gram[kept][:, removed] @ wide[:, removed].T
    of_kept = strength[kept] if isinstance(strength, Tensor) else strength
    return wide[:, kept] + solve(gram[kept][:, kept], right, of_kept).T


def ridge_outputs(
    net: Supernet,
    arch: Architecture,
    grams: Iterable[tuple[Key, Tensor]],
    ridges: Sequence[float],
    penalty: Penalty = strength,
    keep: Keep = in_memory,
) -> dict[float, dict[Key, Tensor]]:
    """Refitted output projections of one architecture, per ridge, from streamed Gram matrices.

    Full-width sub-blocks keep their weights and have no entry. One Gram matrix is used at a time.

    Args:
        grams: in the super-network's order of columns (`saliency.gram_matrices` of `net.model`).
        ridges: relative to the diagonal.
        penalty: λ of a Gram matrix and a ridge.
        keep: where the refitted projections lie.

    Returns:
        ridge → (block, sub-block) → [rows, kept columns], in the weights' dtype.
    """
    out: dict[float, dict[Key, Tensor]] = {ridge: {} for ridge in ridges}
    keep = waiting(net.model, keep)
    for key, gram in grams:
        sub, kept = _place(net, arch, key)
        if kept in (0, sub.spec.units):
            continue
        projection = sub.output_projection
        weight = on_device(net.model, net.linear(key, projection).weight)
        columns = torch.arange(projection.columns, device=weight.device)
        kept_columns = net.cut(sub, projection, 1, kept).take(columns, 0)
        for ridge in ridges:
            fitted = fit_removed(gram, weight, kept_columns, penalty(gram, ridge)).to(weight.dtype)
            out[ridge][key] = keep(fitted)
    return out


def in_base_order(net: Supernet, arch: Architecture, outputs: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """Output projections with their columns in ascending order of the base's, as `save_pruned` takes them."""
    placed: dict[Key, Tensor] = {}
    for key, weight in outputs.items():
        sub, kept = _place(net, arch, key)
        projection = sub.output_projection
        order = net.base_order(key, sub, projection, 1, kept)
        placed[key] = weight if order is None else weight.index_select(1, order.to(weight.device))
    return placed


def _place(net: Supernet, arch: Architecture, key: Key) -> tuple[SubBlock, int]:
    """The sub-block called `key` and its kept units in `arch`."""
    return next((sub, kept) for index, sub, kept in placed(net.blocks, arch) if (index, sub.spec.name) == key)
