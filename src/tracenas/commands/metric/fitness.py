"""The fitness of a metric: perplexity on held-out text right after one-shot pruning with it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.errors import UserError
from tracenas.symbolic.names import explain, find_metric

if TYPE_CHECKING:
    import torch

    from tracenas.families import Block
    from tracenas.saliency.gradients import GradientStore
    from tracenas.saliency.masks import Target

__all__ = ["Fitness", "build", "copied_weights"]


@contextmanager
def copied_weights(model: Any, blocks: "Sequence[Block]") -> "Iterator[list[torch.Tensor]]":
    """Copies stand in the place of the blocks' weights until the block ends; yields the originals.

    Whatever is done to the model inside, the base's own tensors come back, bit for bit, also after an exception.
    """
    from torch import nn

    from tracenas.saliency.linear import linear_of, projections

    modules = [linear_of(model, blocks[i], p) for i, _, p in projections(blocks)]
    originals: list[Any] = [m.weight for m in modules]
    try:
        for module, weight in zip(modules, originals, strict=True):
            module._parameters["weight"] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        yield [w.detach() for w in originals]
    finally:
        for module, weight in zip(modules, originals, strict=True):
            module._parameters["weight"] = weight


class Fitness:
    """Prunes a model with a metric exactly as `tracenas sparsify` does, measures it, and restores it.

    Args:
        model: stays as it is.
        tokens: calibration [N, L]; windows: held-out [N, L].
        gradients: of the dense model; None if no metric will read them.
    """

    def __init__(
        self,
        model: Any,
        blocks: "Sequence[Block]",
        tokens: "torch.Tensor",
        windows: "torch.Tensor",
        target: "Target",
        compare: str,
        *,
        gradients: "GradientStore | None",
        micro_batch: int,
        seed: int,
    ) -> None:
        self.model, self.blocks, self.tokens, self.windows = model, tuple(blocks), tokens, windows
        self.target, self.compare, self.gradients = target, compare, gradients
        self.micro_batch, self.seed = micro_batch, seed
        self._input_rms = self._inputs()

    def _inputs(self) -> "list[torch.Tensor]":
        """√mean x² of every linear layer's input columns, in the dense model."""
        from tracenas.saliency.layerwise import BlockWalk, statistics

        walk = BlockWalk(self.model, self.blocks, self.tokens, self.micro_batch)
        found = []
        for index in range(len(self.blocks)):
            found += [s.read("inputs") for _, s in statistics(walk, index, frozenset({"inputs"}))]
            walk.advance(index)
        return found

    def __call__(self, task: dict[str, Any]) -> dict[str, Any]:
        """`{"metric": text}` → `{"loss", "lost"}`, or `{"failed": reason}` for a metric that cannot be used."""
        from tracenas.models.functionals.perplexity import perplexity
        from tracenas.saliency.layerwise import Plan
        from tracenas.saliency.sparsify import sparsify_model

        try:
            metric, located = find_metric(task["metric"])
            plan = Plan(metric, self.target, self.compare, seed=self.seed)
            why = None if located is None else lambda _, layer, found: explain(located, layer, found)
            with copied_weights(self.model, self.blocks) as dense:
                sparsify_model(
                    self.model,
                    self.blocks,
                    self.tokens,
                    plan,
                    micro_batch=self.micro_batch,
                    gradients=self.gradients,
                    explain=why,
                )
                loss = perplexity(self.model, self.windows, self.micro_batch).nll
                lost = self._lost(dense)
        except UserError as error:
            return {"failed": str(error)}
        return (
            {"loss": loss, "lost": lost} if math.isfinite(loss) else {"failed": "the pruned model's loss is not finite"}
        )

    def _lost(self, dense: "list[torch.Tensor]") -> dict[str, float]:
        """What the pruned weights were, as shares of all: Σ W², Σ (W·X)² and Σ |W·G| of the dense model."""
        from tracenas.saliency.linear import linear_of, projections

        totals: dict[str, list[float]] = {}
        places = list(projections(self.blocks))
        for (index, _, p), weight, rms in zip(places, dense, self._input_rms, strict=True):
            gone = linear_of(self.model, self.blocks[index], p).weight == 0
            figures = {"weight": weight.float().square(), "activation": (weight.float() * rms).square()}
            if self.gradients is not None:
                gradient = self.gradients.get(index, p.path, "gradient").to(weight.device)
                figures["gradient"] = weight.float().abs() * gradient
            for name, value in figures.items():
                pair = totals.setdefault(name, [0.0, 0.0])
                pair[0] += float(value[gone].sum())
                pair[1] += float(value.sum())
        return {name: gone / whole for name, (gone, whole) in totals.items() if whole > 0}


def build(spec: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A fitness function from JSON, for worker processes: everything is read from the model and the run directory.

    Args:
        spec: `model, device, dtype, trust_remote_code, threads, run, sparsity, compare, micro_batch, seed, gradients`.
    """
    import warnings

    import torch

    from tracenas.data.tokens import load_tokens
    from tracenas.models.checkpoints.loading import load
    from tracenas.pipeline.session import set_threads
    from tracenas.saliency.gradients import GradientStore
    from tracenas.saliency.masks import Target

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
        load_tokens(run / "calibration.safetensors").to(loaded.device),
        load_tokens(run / "heldout.safetensors").to(loaded.device),
        Target.parse(spec["sparsity"]),
        spec["compare"],
        gradients=GradientStore(run / "gradients.safetensors") if spec["gradients"] else None,
        micro_batch=spec["micro_batch"],
        seed=spec["seed"],
    )
