"""`tracenas metric search`: discover pruning metrics by genetic programming (Pruner-Zero)."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.config import MetricSearchConfig
from tracenas.config.local_paths import with_absolute_paths
from tracenas.data.sources import probe
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.run_directory import BEST
from tracenas.reporting.progress import START, phase
from tracenas.reporting.terminal import Outcome, Table

__all__ = ["MetricSearched", "search"]


@dataclass(frozen=True)
class MetricSearched(Outcome):
    """Where a finished search is and what it found.

    Args:
        path: the run directory; best: its best.json, as `sparsify --metric` takes it.
        metric: the best expression.
        summary: what summary.json says.
    """

    path: Path
    best: Path
    metric: str
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        shown = ("perplexity", "loss", "complexity", "evaluations", "failed", "seconds", "known", "correlation")
        return {
            "run": str(self.path),
            "best": str(self.best),
            "metric": self.metric,
            **{k: self.summary[k] for k in shown},
        }

    def tables(self) -> list[Table]:
        """The found metric beside the known ones."""
        rows = [(f"found: {self.metric}", f"{self.summary['perplexity']:,.3f}")]
        rows += [(k["name"], _perplexity(k["loss"])) for k in self.summary["known"]]
        notes = [f"best    {self.best}", f"report  {self.path / 'report.html'}"]
        return [Table(f"perplexity at sparsity {self.summary['sparsity']}", ("metric", "perplexity"), rows, notes)]


def _perplexity(loss: float | None) -> str:
    return "failed" if loss is None else f"{math.exp(min(loss, 700)):,.3f}"


def search(config: MetricSearchConfig) -> MetricSearched:
    """Run or resume a metric search into `config.out`.

    Raises:
        UserError: for wrong input, before any work is done.
    """
    config = with_absolute_paths(config)
    source = open_source(config.model, decoder_only="metric")
    if not config.resume:
        probe(config.text_field, config.data, config.text)
    _ = config.trackers  # those that are unknown or not installed are refused
    with phase(START):
        from tracenas.commands.metric.running import run  # torch takes seconds to import

    summary = run(config, source)
    return MetricSearched(config.out, config.out / BEST, summary["metric"], summary)
