"""`tracenas sparsify`: weights set to zero by any metric, written as a dense-shaped checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracenas.commands.sparsify.job import open_job
from tracenas.commands.sparsify.pruning import pruned
from tracenas.config import SparsifyConfig
from tracenas.data.sources import probe
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import open_source
from tracenas.reporting.terminal import Table, print_table, to_plain
from tracenas.rundir import require_free
from tracenas.saliency.linear import projections
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.unstructured import Metric
from tracenas.symbolic.names import find_metric

__all__ = ["Sparsified", "sparsify"]


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

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain(asdict(self))

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
    source = open_source(config.model, decoder_only="sparsify")
    probe(config.text_field, config.data)
    target = Sparsity.parse(config.sparsity)
    for index, _, projection in projections(source.blocks()):
        target.check_columns(projection.columns, f"layer {index} {projection.path}")
    metric, explain = find_metric(config.metric)
    _check(config, metric, target.m > 0)
    existed = config.out.exists()
    require_free(config.out, what="checkpoint directory")
    try:
        with open_job(config, source, target, metric) as job:
            draft, facts = pruned(job, explain)
    finally:
        if not existed and not any(config.out.iterdir()):
            config.out.rmdir()
    names = ("metric", "target", "compare", "ratios", "sparsity", "weights", "zeros", "loss", "base_loss")
    return Sparsified(config.out, params=draft.parameters, **{name: facts[name] for name in names})


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
