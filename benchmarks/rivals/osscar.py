"""OSSCAR (Meng et al., arXiv:2403.12983): which units of one layer go, by local search on the layer's own error.

W [D, n] is an output projection, H [n, n] the second moment of its inputs with a penalty, B = H⁻¹. Without the columns
R, refitted optimally, the layer is wrong by

    ε(R) = min tr((W' - W) H (W' - W)ᵀ) over W' without R = tr(W_R M W_Rᵀ),   M = (B_RR)⁻¹.

The start is the greedy elimination of ZipLM (arXiv:2302.04089, §3.1: `tracenas.saliency.elimination`). Then units are
exchanged, several at a time and in the end one by one (OSSCAR §3.2): those come back that lower ε most, each alone,

    gain_u = tr(β_u (M_uu)⁻¹ β_uᵀ),   β = W_R M,

and as many of those that are left go that raise it least, tr(W_u (B_uu)⁻¹ W_uᵀ) with W and B as they are then. An
exchange stays if ε falls. float64.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tracenas.families import Block, Key, SubBlock, present
from tracenas.models.surgery.ordering import dense_weight
from tracenas.refits.gram import gram_matrices
from tracenas.saliency.elimination import sweep

__all__ = ["Layer", "error", "exchanged", "greedy", "layer_of", "layers"]

SHARES = (8, 32)
"""What of the removed units is exchanged at a time: an eighth, then a thirty-second, then one."""
ROUNDS, TRIED = 8, 4
"""Exchanges of one size at most; units of every group that are tried where they come back one by one."""
LEAST = 1e-9
"""Relative fall of ε below which it is rounding."""


class Layer(NamedTuple):
    """One output projection.

    Args:
        moment: H, float64 [n, n].
        weight: W, float64 [D, n].
        columns: int64 [units, columns of a unit].
        groups: consecutive ranges of units that lose as many.
    """

    moment: Tensor
    weight: Tensor
    columns: Tensor
    groups: int

    @property
    def units(self) -> int:
        """How many there are."""
        return len(self.columns)


def layers(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    penalty: Callable[[Tensor], float | Tensor],
) -> Iterator[tuple[Key, Layer]]:
    """Every output projection with the dense model's statistics, in forward order."""
    subs = dict(present(blocks))
    for key, gram in gram_matrices(model, blocks, tokens, micro_batch):
        weight = dense_weight(model, blocks[key[0]], subs[key].output_projection)
        yield key, layer_of(subs[key], gram, weight, penalty)


def layer_of(sub: SubBlock, gram: Tensor, weight: Tensor, penalty: Callable[[Tensor], float | Tensor]) -> Layer:
    """A sub-block's output projection.

    Args:
        gram: float64 [n, n]; the caller's to lose.
        weight: W, [D, n].
        penalty: what is added to the diagonal of the Gram matrix.
    """
    gram.diagonal().add_(penalty(gram))
    owner = torch.from_numpy(sub.output_projection.unit_ids(1, sub.spec.units))
    columns = owner.argsort(stable=True)[int((owner < 0).sum()) :].view(sub.spec.units, -1)
    return Layer(gram, weight.double(), columns, sub.groups)


def error(layer: Layer, inverse: Tensor, removed: Sequence[int]) -> float:
    """ε(R) of removed units, B given."""
    gone = layer.columns[list(removed)].flatten()
    root = torch.linalg.cholesky(inverse[gone][:, gone])
    return float(torch.linalg.solve_triangular(root, layer.weight[:, gone].T, upper=False).square().sum())


def greedy(layer: Layer, widths: Sequence[int]) -> list[int]:
    """Units in the order in which elimination takes them, step by step from one of `widths` to the next."""
    owner = torch.full((len(layer.moment),), -1)
    owner[layer.columns] = torch.arange(layer.units)[:, None]
    swept = sweep(layer.moment.clone(), layer.weight.T.to(torch.float64, copy=True), owner, widths, groups=layer.groups)
    return [int(u) for u in swept.order]


def exchanged(layer: Layer, removed: Sequence[int]) -> list[int]:
    """Removed units after a local search that begins with `removed`, as many of every group."""
    if not 0 < len(removed) < layer.units:
        return sorted(removed)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(layer.moment))
    current, lowest = sorted(removed), error(layer, inverse, removed)
    for share in (*SHARES, None):
        for _ in range(ROUNDS):
            for trial in _trials(layer, inverse, current, share):
                value = error(layer, inverse, trial)
                if value < lowest * (1 - LEAST):
                    current, lowest = trial, value
                    break
            else:
                break
    return current


def _trials(layer: Layer, inverse: Tensor, removed: Sequence[int], share: int | None) -> Iterator[list[int]]:
    """Exchanges of a share of the removed units in all groups at once; None: of one unit, the most promising first."""
    gains = _gains(layer, inverse, removed)
    by_group = [sorted(of, key=lambda unit: -gains[unit]) for of in _groups(layer, gains)]
    if share is None:
        backs = [{unit} for place in range(TRIED) for of in by_group for unit in of[place : place + 1]]
    else:
        backs = [{unit for of in by_group for unit in of[: max(1, len(of) // share)]}]
    for back in backs:
        still = [unit for unit in removed if unit not in back]
        costs = _costs(layer, inverse, still)
        going: list[int] = []
        for of, wanted in zip(_groups(layer, costs), _groups(layer, back), strict=True):
            going += sorted(of, key=lambda unit: costs[unit])[: len(wanted)]
        yield sorted([*still, *going])


def _groups(layer: Layer, units: Iterable[int]) -> list[list[int]]:
    """Units by their group."""
    found: list[list[int]] = [[] for _ in range(layer.groups)]
    for unit in units:
        found[unit * layer.groups // layer.units].append(unit)
    return found


def _gains(layer: Layer, inverse: Tensor, removed: Sequence[int]) -> dict[int, float]:
    """What ε falls by when a removed unit alone comes back."""
    gone, size = layer.columns[list(removed)].flatten(), layer.columns.shape[1]
    middle = torch.cholesky_inverse(torch.linalg.cholesky(inverse[gone][:, gone]))
    beta = layer.weight[:, gone] @ middle
    places = torch.arange(len(gone)).view(-1, size)
    return dict(zip(removed, _energies(middle, beta, places), strict=True))


def _costs(layer: Layer, inverse: Tensor, removed: Sequence[int]) -> dict[int, float]:
    """What ε rises by when one of the other units alone goes, too."""
    weight, left = layer.weight, inverse
    if removed:
        gone = layer.columns[list(removed)].flatten()
        mixed = torch.cholesky_solve(inverse[gone], torch.linalg.cholesky(inverse[gone][:, gone]))  # M B_R:
        weight = weight - weight[:, gone] @ mixed
        left = inverse - inverse[:, gone] @ mixed
    others = sorted(set(range(layer.units)) - set(removed))
    return dict(zip(others, _energies(left, weight, layer.columns[others]), strict=True))


def _energies(metric: Tensor, weight: Tensor, columns: Tensor) -> list[float]:
    """tr(W_u (A_uu)⁻¹ W_uᵀ) of units with these columns, [units, columns of a unit]."""
    roots = torch.linalg.cholesky(metric[columns[:, :, None], columns[:, None, :]])
    solved = torch.linalg.solve_triangular(roots, weight.T[columns], upper=False)
    energies: list[float] = solved.square().sum((1, 2)).tolist()
    return energies
