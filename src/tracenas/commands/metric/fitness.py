"""The fitness of a metric: perplexity on held-out text right after one-shot pruning with it."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tracenas.data.tokens import load_tokens
from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.loading import load
from tracenas.models.functionals.perplexity import perplexity
from tracenas.pipeline.run_directory import CALIBRATION
from tracenas.saliency.gradients import GradientStore
from tracenas.saliency.layerwise import BlockWalk, SparsityPlan, measured_layers
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import Sparsity
from tracenas.saliency.sparsify import sparsify_model
from tracenas.symbolic.names import find_metric
from tracenas.threads import set_threads

__all__ = ["GRADIENTS", "HELD_OUT", "Fitness", "build", "copied_weights"]

HELD_OUT, GRADIENTS = "heldout.safetensors", "gradients.safetensors"


@contextmanager
def copied_weights(model: Any, blocks: Sequence[Block]) -> Iterator[list[Tensor]]:
    """Copies stand in the place of the blocks' weights until the block ends; yields the originals.

    Whatever is done to the model inside, the base's own tensors come back, bit for bit, also after an exception.
    """

    modules = [linear_module(model, blocks[i], p) for i, _, p in projections(blocks)]
    originals: list[Any] = [m.weight for m in modules]
    try:
        for module, weight in zip(modules, originals, strict=True):
            module._parameters["weight"] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        yield [w.detach() for w in originals]
    finally:
        for module, weight in zip(modules, originals, strict=True):
            module._parameters["weight"] = weight


@dataclass
class Fitness:
    """Prunes a model with a metric exactly as `tracenas sparsify` does, measures it, and restores it.

    Args:
        model: stays as it is.
        tokens: calibration [N, L]; windows: held-out [N, L].
        gradients: of the dense model; None if no metric will read them.
    """

    model: Any
    blocks: Sequence[Block]
    tokens: Tensor
    windows: Tensor
    target: Sparsity
    compare: str
    gradients: GradientStore | None
    micro_batch: int
    seed: int

    def __post_init__(self) -> None:
        self._input_rms = self._inputs()

    def _inputs(self) -> list[Tensor]:
        """√mean x² of every linear layer's input columns, in the dense model."""
        walk = BlockWalk(self.model, self.blocks, self.tokens, self.micro_batch)
        return [measured.read("inputs") for _, measured in measured_layers(walk, frozenset({"inputs"}))]

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """`{"metric": text}` → `{"loss", "lost"}`, or `{"failed": reason}` for a metric that cannot be used."""

        try:
            metric, explain = find_metric(task["metric"])
            plan = SparsityPlan(metric, self.target, self.compare, seed=self.seed)
            with copied_weights(self.model, self.blocks) as dense:
                sparsify_model(
                    self.model,
                    self.blocks,
                    self.tokens,
                    plan,
                    micro_batch=self.micro_batch,
                    gradients=self.gradients,
                    explain=explain,
                )
                loss = perplexity(self.model, self.windows, self.micro_batch).nll
                lost = self._lost(dense)
        except UserError as error:
            return {"failed": str(error)}
        if not math.isfinite(loss):
            return {"failed": "the pruned model's loss is not finite"}
        return {"loss": loss, "lost": lost}

    def _lost(self, dense: list[Tensor]) -> dict[str, float]:
        """What the pruned weights were, as shares of all: Σ W², Σ (W·X)² and Σ |W·G| of the dense model."""

        totals: dict[str, list[float]] = {}
        places = list(projections(self.blocks))
        for (index, _, p), weight, rms in zip(places, dense, self._input_rms, strict=True):
            pruned = linear_module(self.model, self.blocks[index], p).weight == 0
            figures = {"weight": weight.float().square(), "activation": (weight.float() * rms).square()}
            if self.gradients is not None:
                gradient = self.gradients.get(index, p.path, "gradient").to(weight.device)
                figures["gradient"] = weight.float().abs() * gradient
            for name, value in figures.items():
                pair = totals.setdefault(name, [0.0, 0.0])
                pair[0] += float(value[pruned].sum())
                pair[1] += float(value.sum())
        return {name: lost / total for name, (lost, total) in totals.items() if total > 0}


def build(spec: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A fitness function from JSON, for worker processes: everything is read from the model and the run directory.

    Args:
        spec: `model, device, dtype, trust_remote_code, threads, run, sparsity, compare, batch, seed, gradients`.
    """

    warnings.filterwarnings("ignore")
    set_threads(spec["threads"])
    torch.manual_seed(0)
    loaded = load(
        spec["model"], device=spec["device"], dtype=spec["dtype"], trust_remote_code=spec["trust_remote_code"]
    )
    run = Path(spec["run"])
    return Fitness(
        loaded.model,
        loaded.blocks(),
        load_tokens(run / CALIBRATION).to(loaded.device),
        load_tokens(run / HELD_OUT).to(loaded.device),
        Sparsity.parse(spec["sparsity"]),
        spec["compare"],
        gradients=GradientStore(run / GRADIENTS) if spec["gradients"] else None,
        micro_batch=spec["batch"],
        seed=spec["seed"],
    )
