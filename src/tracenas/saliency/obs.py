"""Structured Optimal Brain Surgeon: units ranked for being compensated (ZipLM, arXiv:2302.04089, §3.1).

What is wanted is the order in which units are best taken out if the output projection is refitted after every one of
them. Units are eliminated one after another. With W [D, n] the projection, X [tokens, n] its inputs in the dense model,
G = XᵀX, H = 0.9 G + 0.1 diag(G) + λI and C the columns of a unit, taking it out costs

    ε_C = tr(W_C (H⁻¹_CC)⁻¹ W_Cᵀ) = min tr((W' - W) H (W' - W)ᵀ) over W' without the columns C;

the unit of the least cost goes, and both are updated for those that are left (`saliency.elimination`, Γ the identity).
A unit's saliency is the cost of all that are gone when it has gone, itself included: the error of the output
projection after the refit (with H for G + λI). Two units that are copies of each other are both dear to `wanda`; here
the first is cheap. Of units that are cut and not refitted this is the wrong order. λ = 0.01 · mean diagonal of G, as
compensated candidates are fitted; X is the text that refits are fitted on (`FOR_REFITS`). Correlations count a tenth
less than on that text: taken as they are, the order is that text's own, and other text pays for it.

Where a sub-block has 96 units or more, a forty-eighth of them goes at a time (of as many units, costs that one
removal changes little), and the error is theirs together. Heads of several KV groups go in turns, one of every group.
Fused experts, which are not refitted, are ranked by Wanda's saliency. float64; cost: `saliency.elimination`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, present
from tracenas.models.surgery.ordering import Key, Saliencies, dense_weight
from tracenas.refits.gram import gram_matrices
from tracenas.refits.ridge import strength
from tracenas.saliency import wanda
from tracenas.saliency.elimination import sweep
from tracenas.saliency.statistics import ColumnNorms

__all__ = ["elimination", "saliency"]

RIDGE = 0.01
SHRUNK = 0.1
"""Share by which correlations between columns are shrunk."""
ROUNDS = 48
"""Removals in which a sub-block of many units is taken apart."""


def saliency(model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int) -> Saliencies:
    """The error when a unit has gone, and the importance of every sub-block as `wanda` defines it (A.1).

    Raises:
        UserError: for an encoder–decoder model, and if an activation is not finite.
    """
    units: dict[Key, Tensor] = {}
    norms: dict[Key, Tensor] = {}
    for key, gram in gram_matrices(model, blocks, tokens, micro_batch):
        units[key] = _of_gram(model, blocks, key, gram)
        norms[key] = gram.diagonal().sqrt().cpu()
    if any(sub.stacked for _, sub in present(blocks)):
        by_wanda, importance = wanda.saliency(model, blocks, tokens, micro_batch)
        return by_wanda | units, importance
    return units, wanda.importance(model, blocks, ColumnNorms(norms, tokens.numel()))


def _of_gram(model: Any, blocks: Sequence[Block], key: Key, gram: Tensor) -> Tensor:
    """`elimination` of the sub-block `key`, whose output projection's inputs have this Gram matrix, float64 [n, n]."""
    block = blocks[key[0]]
    sub = next(s for s in block.sub_blocks if s.spec.name == key[1])
    projection = sub.output_projection
    owner = torch.from_numpy(projection.unit_ids(1, sub.spec.units))
    shrunk = torch.diag_embed(SHRUNK * gram.diagonal()).add_(gram, alpha=1 - SHRUNK)
    return elimination(
        shrunk, dense_weight(model, block, projection), owner, groups=sub.groups, ridge=strength(gram, RIDGE)
    )


def elimination(gram: Tensor, weight: Tensor, owner: Tensor, *, groups: int = 1, ridge: float) -> Tensor:
    """The error after the refit when a unit has gone, float64 [units] on the CPU.

    Args:
        gram: G, float64 [n, n].
        weight: W, [D, n].
        owner: int64 [n], the unit of every column; -1 for columns that stay. Every unit has as many columns.
        groups: KV groups; the units of a group lie side by side, and groups lose as many.
        ridge: λ, absolute.
    """
    units = int(owner.max()) + 1
    step = max(1, units // ROUNDS) if groups == 1 else 1
    widths = sorted(range(units, 0, -step))
    swept = sweep(
        gram + torch.diag_embed(gram.new_full((len(gram),), ridge)),
        weight.T.to(torch.float64, copy=True),
        owner,
        widths,
        groups=groups,
    )
    error = torch.empty(units, dtype=torch.float64)
    error[swept.order] = swept.cost
    return error
