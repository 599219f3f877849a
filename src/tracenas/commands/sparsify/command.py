"""`tracenas sparsify`: weights set to zero by any metric, written as a dense-shaped checkpoint."""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.config import MetricSearchConfig, SparsifyConfig
from tracenas.data.sources import is_tokens, probe
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource, open_source
from tracenas.pipeline.calibration import calibration_tokens as tokens_of
from tracenas.pipeline.calibration import warn_of_tokenizer, window_start
from tracenas.pipeline.session import set_threads
from tracenas.reporting.terminal import Table, print_table, to_plain
from tracenas.rundir import read_json, require_free, write_json
from tracenas.symbolic.names import explain, find_metric

if TYPE_CHECKING:
    import torch

    from tracenas.models.checkpoints.loading import LoadedModel
    from tracenas.models.checkpoints.writing import Draft
    from tracenas.saliency.gradients import GradientStore
    from tracenas.saliency.layerwise import Plan
    from tracenas.saliency.masks import Target
    from tracenas.saliency.sparsify import LayerCount
    from tracenas.saliency.unstructured import Metric
    from tracenas.symbolic import Located

__all__ = ["SPARSITY", "Sparsified", "calibration_tokens", "sparsify"]

SPARSITY = "sparsity.json"
DEFAULT_SAMPLES = 128


@dataclass(frozen=True)
class Sparsified:
    """A written checkpoint.

    Args:
        path: its directory.
        metric, target, compare, ratios: what pruned it.
        sparsity: zeros of the pruned matrices / their entries, counted in the written file.
        weights, zeros: entries and zeros of these matrices.
        params: of the whole model, zeros included.
        loss, base_loss: on the calibration, nats per token; None without calibration.
    """

    path: Path
    metric: str
    target: str
    compare: str
    ratios: str
    sparsity: float
    weights: int
    zeros: int
    params: int
    loss: float | None
    base_loss: float | None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        plain: dict[str, Any] = to_plain(asdict(self))
        return plain

    def show(self) -> None:
        """A summary on stdout."""
        rows = [
            ("checkpoint", str(self.path)),
            ("metric", f"{self.metric} (compared by {self.compare}, ratios {self.ratios})"),
            ("zeros, counted in the file", f"{self.zeros:,} of {self.weights:,} ({100 * self.sparsity:.2f}%)"),
            ("parameters, zeros included", f"{self.params:,}"),
        ]
        if self.loss is not None and self.base_loss is not None:
            rows.append(("calibration loss", f"{self.loss:.4f} (base {self.base_loss:.4f})"))
        print_table(Table(f"sparsified to {self.target}", ("", "value"), rows))


def sparsify(config: SparsifyConfig) -> Sparsified:
    """Prune block by block (each block's inputs come from the pruned ones before it) and write the checkpoint.

    Raises:
        UserError: for wrong input, before any work is done where it can be known.
    """
    from tracenas.saliency.masks import Target

    source = open_source(config.model, decoder_only="sparsify")
    probe(config.text_field, config.data)
    target = Target.parse(config.sparsity)
    for index, block in enumerate(source.blocks()):
        for sub in block.sub_blocks:
            for p in sub.projections if sub.spec.units else ():
                target.check_columns(p.columns, f"layer {index} {p.path}")
    metric, located = find_metric(config.metric)
    _check(config, metric, target.m > 0)
    existed = config.out.exists()
    require_free(config.out, what="checkpoint directory")
    try:
        return _sparsify(config, source, target, metric, located)
    finally:
        if not existed and not any(config.out.iterdir()):
            config.out.rmdir()


def _sparsify(
    config: SparsifyConfig, source: ModelSource, target: "Target", metric: "Metric", located: "Located | None"
) -> Sparsified:
    from tracenas.saliency.layerwise import Plan

    set_threads(config.threads)
    loaded, tokens, batch = _load(config, source)
    with ExitStack() as stack:
        gradients = None
        if metric.needs & {"gradient", "gradient_rms"}:
            gradients = _gradients(config, metric, loaded, tokens, batch, stack)
        compare = _comparison(config.compare, metric, target.m > 0)
        shares = _shares(config, source, loaded, metric, compare, gradients, tokens, batch)
        plan = Plan(metric, target, compare, shares, config.seed)
        why = None if located is None else lambda _, layer, found: explain(located, layer, found)
        return _prune(config, source, loaded, plan, tokens, batch, gradients, why)


def _check(config: SparsifyConfig, metric: "Metric", groups: bool) -> None:
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


def _comparison(asked: str, metric: "Metric", groups: bool) -> str:
    if asked != "auto":
        return asked
    return "row" if groups else metric.compare


def _load(config: SparsifyConfig, source: ModelSource) -> "tuple[LoadedModel, torch.Tensor, int]":
    import torch

    from tracenas.models.checkpoints.loading import load

    loaded = load(source, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    if config.data is None:
        return loaded, torch.zeros(1, 2, dtype=torch.int64, device=loaded.device), 1
    drawn = calibration_tokens(loaded, config, config.data).to(loaded.device)
    return loaded, drawn, config.micro_batch or max(1, 4096 // drawn.shape[1])


def calibration_tokens(loaded: "LoadedModel", config: SparsifyConfig | MetricSearchConfig, data: str) -> "torch.Tensor":
    """Calibration token ids, int64 [N, L] (128 sequences of up to 2,048 tokens of text, as published).

    Raises:
        UserError: too few tokens, too long sequences, or a model without tokenizer.
    """
    return tokens_of(
        loaded,
        data,
        samples=config.samples if config.samples is not None or is_tokens(data) else DEFAULT_SAMPLES,
        seq_len=config.seq_len,
        seed=config.seed,
        text_field=config.text_field,
        bos=config.bos,
        longest=2048,
    )


def _gradients(
    config: SparsifyConfig,
    metric: "Metric",
    loaded: "LoadedModel",
    tokens: "torch.Tensor",
    batch: int,
    stack: ExitStack,
) -> "GradientStore":
    """The file that was named if it is there, else a new one: named, or temporary."""
    from tracenas.reporting.progress import stage_progress
    from tracenas.saliency.gradients import KINDS, GradientStore, write_gradients

    if config.gradients is not None and config.gradients.is_file():
        return GradientStore(config.gradients)
    path = config.gradients
    kinds: Sequence[str] = KINDS
    if path is None:
        path = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tracenas-gradients-")))
            / "gradients.safetensors"
        )
        kinds = [k for k in KINDS if k in metric.needs]
    blocks = loaded.blocks()
    done = 0
    with stage_progress("gradients", len(blocks)) as advance:

        def on_group(count: int) -> None:
            nonlocal done
            advance(count - done)
            done = count

        return write_gradients(loaded.model, blocks, tokens, path, kinds=kinds, micro_batch=batch, on_group=on_group)


def _shares(
    config: SparsifyConfig,
    source: ModelSource,
    loaded: "LoadedModel",
    metric: "Metric",
    compare: str,
    gradients: "GradientStore | None",
    tokens: "torch.Tensor",
    batch: int,
) -> dict[tuple[int, str], float]:
    """Zeros per (block, sub-block); empty for uniform ratios."""
    from tracenas.commands.sparsify.search import search_shares, sparsity_space
    from tracenas.saliency.masks import Target
    from tracenas.saliency.sparsify import outlier_shares
    from tracenas.space.sparsity import Shares

    share = Target.parse(config.sparsity).share
    if config.ratios == "uniform":
        return {}
    if config.ratios == "owl":
        return outlier_shares(loaded.model, loaded.blocks(), tokens, share, micro_batch=batch)
    space = sparsity_space(source, share, config.spread)
    if config.ratios == "search":
        if compare == "global":
            raise UserError("compare global does not go with ratios search")
        return search_shares(config, loaded, space, metric, compare, gradients, tokens, batch).by_key()
    path = Path(config.ratios)
    found = space.check(Shares.from_json(read_json(path), where=str(path)), where=str(path))
    total = sum(n for layer in space.sizes for _, n in layer)
    mean = sum(found.by_key()[i, name] * n for i, layer in enumerate(space.sizes) for name, n in layer) / total
    if abs(mean - share) > 0.005:
        raise UserError(f"ratios {path}: {mean:.3f} zeros in all, sparsity {share:g} was asked for")
    return found.by_key()


def _prune(
    config: SparsifyConfig,
    source: ModelSource,
    loaded: "LoadedModel",
    plan: "Plan",
    tokens: "torch.Tensor",
    batch: int,
    gradients: "GradientStore | None",
    why: Any,
) -> Sparsified:
    from tracenas.models.functionals.perplexity import perplexity
    from tracenas.reporting.progress import stage_progress
    from tracenas.saliency.sparsify import sparsify_model

    blocks = loaded.blocks()
    measured = config.data is not None
    base_loss = perplexity(loaded.model, tokens, batch).nll if measured else None
    with stage_progress("sparsify", len(blocks)) as advance:
        counts = sparsify_model(
            loaded.model,
            blocks,
            tokens,
            plan,
            micro_batch=batch,
            gradients=gradients,
            explain=why,
            on_block=lambda _: advance(),
        )
    loss = perplexity(loaded.model, tokens, batch).nll if measured else None
    return _write(config, source, loaded, plan, counts, (base_loss, loss))


def _write(
    config: SparsifyConfig,
    source: ModelSource,
    loaded: "LoadedModel",
    plan: "Plan",
    counts: "list[LayerCount]",
    losses: tuple[float | None, float | None],
) -> Sparsified:
    """Write checkpoint, sparsity.json and model card, after counting the zeros in the written files."""
    import numpy as np

    from tracenas.commands.sparsify.card import sparsity_card, sparsity_facts, verified
    from tracenas.models.checkpoints.loading import dtype_to_save
    from tracenas.models.checkpoints.writing import save_pruned
    from tracenas.saliency.sparsify import sparse_entries

    blocks = loaded.blocks()
    bos = None if config.data is None else window_start(loaded, config.data, config.bos).carried
    facts: dict[str, Any] = {}

    def card(draft: "Draft") -> str:
        facts.update(sparsity_facts(config, plan, verified(draft.path, blocks, counts, plan.target), losses, bos))
        write_json(draft.path / SPARSITY, facts)
        return sparsity_card(config, source, draft, json.loads(json.dumps(facts)))

    kept = {
        (i, s.spec.name): np.arange(s.spec.units) if s.spec.units else None
        for i, b in enumerate(blocks)
        for s in b.sub_blocks
    }
    tensors = loaded.tensors()
    tensors |= sparse_entries(loaded.model, blocks, tensors, solved=plan.metric.solve is not None)
    warn_of_tokenizer(loaded)
    draft = save_pruned(
        loaded.model,
        loaded.files,
        source.family,
        blocks,
        kept,
        config.out,
        tensors=tensors,
        dtype=dtype_to_save(config.save_dtype),
        max_shard_size=config.shard_size,
        card=card,
    )
    shown = {key: facts[key] for key in ("metric", "target", "compare", "ratios", "sparsity", "weights", "zeros")}
    return Sparsified(config.out, **shown, params=draft.parameters, loss=losses[1], base_loss=losses[0])
