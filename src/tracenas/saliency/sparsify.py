"""A model pruned to a share of zeros, or to N:M, by any metric; and per-block shares by OWL."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.shards import Entry
from tracenas.models.surgery.ordering import Key
from tracenas.paging import Keep, in_memory
from tracenas.rundir import writing
from tracenas.saliency.gradients import GradientStore
from tracenas.saliency.layerwise import BlockWalk, LinearLayer, SparsityPlan, measured_layers
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import COMPARISONS, keep, threshold
from tracenas.saliency.unstructured import Metric, Statistics

__all__ = [
    "Explain",
    "LayerCount",
    "check",
    "checked_score",
    "outlier_shares",
    "sparse_entries",
    "sparsify_model",
]

Explain = Callable[[Metric, LinearLayer, Statistics], str]
"""Says why a metric cannot rank a layer, for a message."""

Pruning = tuple[LinearLayer, Tensor, Tensor | None]
"""A layer, where its weights stay, and the weights that take their place, if any do."""


@dataclass(frozen=True)
class LayerCount:
    """What became of one matrix.

    Args:
        pruned: weights that the mask removes.
        zeros: of its entries, pruned or zero before.
    """

    name: str
    sub_block: str
    rows: int
    columns: int
    pruned: int
    zeros: int

    @property
    def share(self) -> float:
        """Zeros / entries."""
        return self.zeros / (self.rows * self.columns)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "sparsity": self.share}


def check(model: Any, blocks: Sequence[Block], plan: SparsityPlan) -> None:
    """Refuse what cannot work before any work is done.

    Raises:
        UserError: an unknown comparison, one that does not go with the target or metric, or N:M where a
            matrix's inputs are not divisible by M.
    """
    name, target = plan.metric.name, plan.target
    if plan.compare not in COMPARISONS:
        raise UserError(f"compare '{plan.compare}': accepted: auto, {', '.join(COMPARISONS)}")
    if target.m and plan.shares:
        raise UserError(f"sparsity {target} is the same in every layer: ratios must be uniform")
    if target.m and plan.compare == "global":
        raise UserError(f"sparsity {target} compares within groups of {target.m}: compare must be row")
    if plan.compare == "global" and (plan.metric.solve or plan.shares):
        why = f"metric {name} updates weights" if plan.metric.solve else "ratios other than uniform"
        raise UserError(f"compare global does not go with {why}")
    for index, _, p in projections(blocks):
        linear_module(model, blocks[index], p)
        target.check_columns(p.columns, f"layer {index} {p.path}")


def checked_score(metric: Metric, layer: LinearLayer, measured: Statistics, explain: Explain | None = None) -> Tensor:
    """The metric's scores of one layer.

    Raises:
        UserError: if they are constant or not finite.
    """
    score = metric.score(measured)
    low, high = torch.aminmax(score)
    if not bool(torch.isfinite(low) & torch.isfinite(high)) or bool(low == high):
        if explain is not None:
            raise UserError(explain(metric, layer, measured))
        what = "are all equal" if bool(low == high) else "are not finite"
        raise UserError(f"metric {metric.name}: its scores {what} on {layer.name}")
    return score


def sparsify_model(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    plan: SparsityPlan,
    *,
    micro_batch: int = 1,
    gradients: GradientStore | None = None,
    explain: Explain | None = None,
    on_block: Callable[[int], None] | None = None,
    keep_states: Keep = in_memory,
) -> list[LayerCount]:
    """Prune `model` in place; counts per matrix.

    Comparison over all layers scores the dense model first (scores wait on disk) and prunes it afterwards.

    Args:
        keep_states: where the calibration's hidden states lie.

    Raises:
        UserError: see `check` and `checked_score`.
    """
    check(model, blocks, plan)
    walk = BlockWalk(model, blocks, tokens, micro_batch, gradients=gradients, seed=plan.seed, keep=keep_states)
    counts: list[LayerCount] = []
    if plan.compare == "global":
        masks = _global_masks(walk, plan, explain, on_block)
    else:
        masks = _layer_masks(walk, plan, explain, on_block)
    for layer, mask, weight in masks:
        walk.prune(layer, mask, weight)
        rows, columns = mask.shape
        counts.append(LayerCount(layer.name, layer.key[1], rows, columns, int((~mask).sum()), 0))
    modules = (linear_module(model, blocks[index], p) for index, _, p in projections(blocks))
    return [replace(c, zeros=int((m.weight == 0).sum())) for c, m in zip(counts, modules, strict=True)]


def _layer_masks(
    walk: BlockWalk, plan: SparsityPlan, explain: Explain | None, on_block: Callable[[int], None] | None
) -> Iterator[Pruning]:
    for layer, measured in measured_layers(walk, plan.metric.needs, on_block):
        target = plan.layer_target(layer)
        if plan.metric.solve is not None:
            weight, mask = plan.metric.solve(measured, target)
            yield layer, mask, weight
        else:
            yield layer, keep(checked_score(plan.metric, layer, measured, explain), target, plan.compare), None


def _global_masks(
    walk: BlockWalk, plan: SparsityPlan, explain: Explain | None, on_block: Callable[[int], None] | None
) -> Iterator[Pruning]:
    layers: list[LinearLayer] = []
    with tempfile.TemporaryDirectory(prefix="tracenas-scores-") as directory:

        def place(number: int) -> Path:
            return Path(directory) / f"{number}.safetensors"

        for layer, measured in measured_layers(walk, plan.metric.needs, on_block):
            score = checked_score(plan.metric, layer, measured, explain).cpu().contiguous()
            with writing(path := place(len(layers))):
                save_file({"score": score}, path)
            layers.append(layer)

        def stored() -> Iterator[Tensor]:
            return (load_file(place(number))["score"] for number in range(len(layers)))

        limit = threshold(stored, plan.target.share)
        yield from ((layer, limit.keep(score), None) for layer, score in zip(layers, stored(), strict=True))


def sparse_entries(
    model: Any, blocks: Sequence[Block], stored: Mapping[str, Entry], *, solved: bool
) -> dict[str, Entry]:
    """The pruned matrices as they are to be written: in the types they are stored in.

    Args:
        model: what `sparsify_model` left.
        stored: the base's tensors by name, as its files hold them.
        solved: whether the weights that stay were changed as well; otherwise they are the files'.
    """
    out = {}
    for index, _, projection in projections(blocks):
        weight = linear_module(model, blocks[index], projection).weight.detach()
        name = f"{blocks[index].path}.{projection.path}.weight"
        if (entry := stored.get(name)) is not None:
            out[name] = replace(entry, make=partial(_sparse, weight, entry, solved))
    return out


def _sparse(weight: Tensor, entry: Entry, solved: bool) -> Tensor:
    return weight.to(entry.dtype) if solved else entry.make().masked_fill(weight.cpu() == 0, 0.0)


OUTLIER_FACTOR = 5.0
"""M of OWL: an outlier's score is more than M times the block's mean."""

OUTLIER_SPREAD = 0.08
"""λ of OWL: no block's share is farther than this from the overall one before they are centred."""


def outlier_shares(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    share: float,
    *,
    micro_batch: int = 1,
    factor: float = OUTLIER_FACTOR,
    spread: float = OUTLIER_SPREAD,
    keep_states: Keep = in_memory,
) -> dict[Key, float]:
    """Outlier-weighed layerwise sparsity, OWL (Yin et al., arXiv:2310.05175): blocks with more outliers keep more.

    D_l = share of the block's scores |W|·‖X‖ above M times their mean; density_l = 2λ · (D_l - min D) /
    (max D - min D), shifted so that the mean over all weights is 1 - share.

    Returns:
        the share of zeros per (block, sub-block).
    """
    walk = BlockWalk(model, blocks, tokens, micro_batch, keep=keep_states)
    scores: list[list[Tensor]] = [[] for _ in blocks]
    outliers, sizes = [], []

    def finish(index: int) -> None:
        parts, scores[index] = scores[index], []
        score = torch.cat(parts) if parts else torch.zeros(1)
        outliers.append(float((score > factor * score.mean()).double().mean()))
        sizes.append(sum(s.numel() for s in parts))

    for layer, measured in measured_layers(walk, frozenset({"inputs"}), finish):
        scores[layer.block].append((measured.weight.abs() * measured.read("inputs")).reshape(-1))
    low, high = min(outliers), max(outliers)
    density = [2 * spread * (d - low) / (high - low) if high > low else 0.0 for d in outliers]
    mean = sum(d * n for d, n in zip(density, sizes, strict=True)) / max(1, sum(sizes))
    shares = [share - (d - mean) for d in density]
    if min(shares) < 0 or max(shares) >= 1:
        raise UserError(f"ratios owl: a share of {share:g} leaves no room for ±{spread:g}; use uniform")
    return {(i, sub.spec.name): shares[i] for i, sub, _ in projections(blocks)}
