"""A model that is to be pruned to a sparse checkpoint, with its calibration and the gradients that its metric reads."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tracenas.config import MetricSearchConfig, SparsifyConfig
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import default_micro_batch
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.functionals.perplexity import perplexity
from tracenas.pipeline.calibration import calibration_tokens
from tracenas.pipeline.host_memory import keeping
from tracenas.pipeline.loading import load_model
from tracenas.pipeline.precision import in_half_precision
from tracenas.reporting.progress import phase
from tracenas.saliency.gradients import KINDS, GradientStore, write_gradients
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.unstructured import Metric
from tracenas.threads import set_threads

__all__ = ["LOSS_SEQUENCES", "Job", "open_job", "sparsity_calibration"]

DEFAULT_SAMPLES = 128


LOSS_SEQUENCES = 16
"""Of the calibration, that the loss before and after is told of: all of it would take as long as the pruning."""


@dataclass(frozen=True)
class Job:
    """A model and what it is pruned with.

    Args:
        tokens: calibration token ids, int64 [N, L] on the model's device; without `data` of no meaning.
        micro_batch: sequences per forward pass.
        threads: of torch.
        gradients: of the dense model, where the metric reads them.
    """

    config: SparsifyConfig
    source: ModelSource
    loaded: LoadedModel
    metric: Metric
    target: Sparsity
    tokens: Tensor
    micro_batch: int
    threads: int
    gradients: GradientStore | None = None

    @property
    def compare(self) -> str:
        """What a weight is compared with: as the user has it, else as the metric's authors, within rows for N:M."""
        if self.config.compare != "auto":
            return self.config.compare
        return "row" if self.target.m else self.metric.compare

    @property
    def loss(self) -> float | None:
        """On the first sequences of the calibration, nats per token; None without calibration."""
        if self.config.data is None:
            return None
        with phase("calibration loss") as steps:
            tokens = self.tokens[:LOSS_SEQUENCES]
            return perplexity(self.loaded.model, tokens, self.micro_batch, report=steps.report).nll


@contextmanager
def open_job(config: SparsifyConfig, source: ModelSource, target: Sparsity, metric: Metric) -> Iterator[Job]:
    """The loaded model with its calibration and gradients; gradients that have no file are there for the block only."""
    threads = set_threads(config.threads)
    loaded = load_model(source, config, keeping(source, config))
    tokens, micro_batch = torch.zeros(1, 2, dtype=torch.int64, device=loaded.device), 1
    if config.data is not None:
        with phase("read text"):
            tokens = sparsity_calibration(loaded, config, config.data).to(loaded.device)
        if not metric.needs & {"gradient", "gradient_rms"} and config.ratios != "search":
            unpruned = source.space()
            loaded = in_half_precision(source, config, loaded, unpruned.parameters(unpruned.base), tokens)
        micro_batch = config.batch or default_micro_batch(tokens.shape[1])
    gradients = None
    with ExitStack() as stack:
        if metric.needs & {"gradient", "gradient_rms"}:
            path, kinds = config.gradients, frozenset(KINDS)
            if path is None:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="tracenas-gradients-"))
                path, kinds = Path(directory) / "gradients.safetensors", metric.needs
            gradients = _gradients(loaded, tokens, path, kinds, micro_batch)
        yield Job(config, source, loaded, metric, target, tokens, micro_batch, threads, gradients)


def sparsity_calibration(loaded: LoadedModel, config: SparsifyConfig | MetricSearchConfig, data: str) -> Tensor:
    """Calibration token ids, int64 [N, L] (128 sequences of up to 2,048 tokens of text, as published).

    Raises:
        UserError: too few tokens, too long sequences, or a model without tokenizer.
    """
    return calibration_tokens(
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
    loaded: LoadedModel, tokens: Tensor, path: Path, needs: frozenset[str], micro_batch: int
) -> GradientStore:
    """Those that the file holds if it is there, else those that are needed, measured and written there."""
    if path.is_file():
        return GradientStore(path)
    blocks, kinds = loaded.blocks(), [kind for kind in KINDS if kind in needs]
    with phase("gradients", len(blocks)) as steps:
        return write_gradients(
            loaded.model, blocks, tokens, path, kinds=kinds, micro_batch=micro_batch, report=steps.report
        )
