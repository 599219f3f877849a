"""Pruning a model to a sparse checkpoint: shares of zeros per sub-block, the pruning itself, the written files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.commands.sparsify.card import sparsity_card, sparsity_facts, verified
from tracenas.commands.sparsify.job import Job, open_job
from tracenas.commands.sparsify.search import conclude_shares, is_of_search, search_shares, with_run_threads
from tracenas.config import SparsifyConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import dtype_to_save
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.checkpoints.writing import Draft, save_pruned
from tracenas.pipeline.calibration import warn_of_tokenizer, window_start
from tracenas.reporting.progress import phase
from tracenas.rundir import check_free, read_json, write_json
from tracenas.saliency.layerwise import SparsityPlan
from tracenas.saliency.linear import projections
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.sparsify import Explain, LayerCount, outlier_shares, sparse_entries, sparsify_model
from tracenas.saliency.unstructured import Metric
from tracenas.space.sparsity import Shares, SparsitySpace
from tracenas.symbolic.names import find_metric

__all__ = ["SPARSITY", "complete", "write_sparse"]

SPARSITY = "sparsity.json"


def complete(config: SparsifyConfig, source: ModelSource) -> dict[str, Any] | None:
    """What sparsity.json says, where the checkpoint of a search is written; what the search's directory lacks is made.

    None where there is none yet.
    """
    if config.ratios != "search" or not (config.out / SPARSITY).is_file() or not is_of_search(config):
        return None
    metric, _ = find_metric(config.metric)
    conclude_shares(config, _space(config, source, Sparsity.parse(config.sparsity)), metric.name)
    facts: dict[str, Any] = read_json(config.out / SPARSITY)
    return facts


def write_sparse(config: SparsifyConfig, source: ModelSource) -> dict[str, Any]:
    """Prune a model and write it; what sparsity.json says.

    Raises:
        UserError: for wrong input, before any work is done where it can be known.
    """
    target = Sparsity.parse(config.sparsity)
    for index, _, projection in projections(source.blocks()):
        target.check_columns(projection.columns, f"layer {index} {projection.path}")
    metric, explain = find_metric(config.metric)
    _check(config, metric, target.m > 0)
    check_free(config.out, what="checkpoint directory")
    config = with_run_threads(config) if config.ratios == "search" else config
    with open_job(config, source, target, metric) as job:
        return _pruned(job, explain)


def _check(config: SparsifyConfig, metric: Metric, groups: bool) -> None:
    needed = bool(metric.needs) or config.ratios in ("owl", "search")
    if needed and config.data is None:
        reader = f"ratios {config.ratios}" if config.ratios in ("owl", "search") else f"metric {metric.name}"
        raise UserError(f"'data' is required: {reader} reads calibration text or tokens")
    if config.gradients is not None and not metric.needs & {"gradient", "gradient_rms"}:
        raise UserError(f"gradients is not used here: metric {metric.name} reads none; leave it out")
    if config.ratios not in ("uniform", "owl", "search") and not Path(config.ratios).is_file():
        raise UserError(f"ratios '{config.ratios}': accepted: uniform, owl, search, or a JSON file")
    if groups and config.ratios != "uniform":
        raise UserError(f"sparsity {config.sparsity} is the same in every layer: ratios must be uniform")
    if groups and config.compare in ("layer", "global"):
        raise UserError(f"sparsity {config.sparsity} compares within groups of a row: compare must be auto or row")
    if metric.solve is not None and config.compare != "auto":
        raise UserError(f"metric {metric.name} compares within its own column blocks: compare must be auto")


def _pruned(job: Job, explain: Explain | None) -> dict[str, Any]:
    """Prune the model in place and write it; what sparsity.json says."""
    plan = SparsityPlan(job.metric, job.target, job.compare, _shares(job), job.config.seed)
    base_loss, blocks = job.loss, job.loaded.blocks()
    with phase("sparsify", len(blocks)) as steps:
        counts = sparsify_model(
            job.loaded.model,
            blocks,
            job.tokens,
            plan,
            micro_batch=job.micro_batch,
            gradients=job.gradients,
            explain=explain,
            on_block=lambda _: steps.advance(),
            keep_states=job.loaded.keep,
        )
    return _write(job, plan, counts, (base_loss, job.loss))


def _shares(job: Job) -> dict[tuple[int, str], float]:
    """Zeros per (block, sub-block); empty for uniform ratios."""
    ratios, share = job.config.ratios, job.target.share
    if ratios == "uniform":
        return {}
    if ratios == "owl":
        model, blocks = job.loaded.model, job.loaded.blocks()
        with phase("outliers"):
            return outlier_shares(
                model, blocks, job.tokens, share, micro_batch=job.micro_batch, keep_states=job.loaded.keep
            )
    space = _space(job.config, job.source, job.target)
    if ratios == "search":
        if job.compare == "global":
            raise UserError("compare global does not go with ratios search")
        return search_shares(job, space).by_key()
    shares = space.check(Shares.from_json(read_json(Path(ratios)), where=ratios), where=ratios).by_key()
    total = sum(n for layer in space.sizes for _, n in layer)
    mean = sum(shares[i, name] * n for i, layer in enumerate(space.sizes) for name, n in layer) / total
    if abs(mean - share) > 0.005:
        raise UserError(f"ratios {ratios}: {mean:.3f} zeros in all, sparsity {share:g} was asked for")
    return shares


def _space(config: SparsifyConfig, source: ModelSource, target: Sparsity) -> SparsitySpace:
    """The space over a model's sub-blocks; their sizes are the weights of their linear layers."""
    sizes = [
        [(s.spec.name, sum(p.rows * p.columns for p in s.projections)) for s in b.sub_blocks if s.spec.units]
        for b in source.blocks()
    ]
    unpruned = source.space()
    return SparsitySpace(sizes, target.share, unpruned.parameters(unpruned.base), spread=config.spread)


def _write(
    job: Job, plan: SparsityPlan, counts: list[LayerCount], losses: tuple[float | None, float | None]
) -> dict[str, Any]:
    """Write checkpoint, sparsity.json and model card, after counting the zeros in the written files."""
    config, loaded, blocks = job.config, job.loaded, job.loaded.blocks()
    bos = None if config.data is None else window_start(loaded, config.data, config.bos).carried
    facts: dict[str, Any] = {}

    def card(draft: Draft) -> str:
        facts.update(sparsity_facts(config, plan, verified(draft.path, blocks, counts, plan.target), losses, bos))
        write_json(draft.path / SPARSITY, facts)
        return sparsity_card(config, job.source, draft, json.loads(json.dumps(facts)))

    all_units = {
        (i, s.spec.name): np.arange(s.spec.units) if s.spec.units else None
        for i, b in enumerate(blocks)
        for s in b.sub_blocks
    }
    tensors = loaded.tensors()
    tensors |= sparse_entries(loaded.model, blocks, tensors, solved=plan.metric.solve is not None)
    warn_of_tokenizer(loaded)
    with phase("write the checkpoint"):
        save_pruned(
            loaded.model,
            loaded.files,
            job.source.family,
            blocks,
            all_units,
            config.out,
            tensors=tensors,
            dtype=dtype_to_save(config.save_dtype),
            max_shard_size=config.shard_size,
            card=card,
        )
    return facts
