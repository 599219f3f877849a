"""`tracenas sparsify`: weights set to zero by any metric, written as a dense-shaped checkpoint."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracenas.config import SparsifyConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.workers import require_cpu, with_workers
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table, to_plain

__all__ = ["Sparsified", "sparsify"]


@dataclass(frozen=True)
class Sparsified(Outcome):
    """A written checkpoint.

    Args:
        path: its directory.
        metric, target, compare, ratios: what pruned it.
        sparsity: zeros of the pruned matrices / their entries, counted in the written file.
        weights, zeros: entries and zeros of these matrices.
        params: of the whole model, zeros included.
        loss, base_loss: on the calibration's first 16 sequences, nats per token; None without calibration.
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

    def tables(self) -> list[Table]:
        """A summary."""
        rows = [
            ("checkpoint", str(self.path)),
            ("metric", f"{self.metric} (compared by {self.compare}, ratios {self.ratios})"),
            ("zeros, counted in the file", f"{self.zeros:,} of {self.weights:,} ({100 * self.sparsity:.2f}%)"),
            ("parameters, zeros included", f"{self.params:,}"),
        ]
        if self.loss is not None and self.base_loss is not None:
            rows.append(("calibration loss", f"{self.loss:.4f} (base {self.base_loss:.4f})"))
        return [Table(f"sparsified to {self.target}", ("", "value"), rows)]


def sparsify(config: SparsifyConfig) -> Sparsified:
    """Prune block by block (each block's inputs come from the pruned ones before it) and write the checkpoint.

    Raises:
        UserError: for wrong input, before any work is done where it can be known.
    """
    config = with_workers(with_absolute_paths(config))
    source = open_source(config.model, decoder_only="sparsify")
    probe(config.text_field, config.data)
    with phase(START):
        from tracenas.commands.sparsify.pruning import complete, write_sparse  # torch takes seconds to import

    require_cpu(config)
    space = source.space()
    facts = complete(config, source) if config.resume else None
    if facts is None:
        facts = write_sparse(config, source)
    params = space.parameters(space.base)
    names = ("metric", "target", "compare", "ratios", "sparsity", "weights", "zeros", "loss", "base_loss")
    return Sparsified(config.out, params=params, **{name: facts[name] for name in names})
