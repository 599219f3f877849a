"""How long the stages after a search take, before there is a checkpoint."""

from dataclasses import dataclass, replace
from typing import Any

from tracenas.commands.plan.evaluation import Reading, reading
from tracenas.commands.plan.models import PlannedModels
from tracenas.commands.plan.speed import bench_seconds
from tracenas.commands.plan.training import training
from tracenas.config import BenchConfig, PlanConfig, PruneConfig
from tracenas.pipeline.estimate import SearchEstimate, SearchTime
from tracenas.scoring.workload import Shape, per_stack
from tracenas.space import costs
from tracenas.space.architecture import Architecture

__all__ = ["STAGES", "StageTimes"]

STAGES = ("search", "prune", "checkpoints", "comparison", "recover", "eval", "bench")
"""In the order of a run."""
_TIMED = "torch"
"""The backend whose bench is estimated."""


@dataclass(frozen=True)
class StageTimes:
    """What is known of a run's stages when its search has been estimated.

    Args:
        models: what the stages are of.
        shape, time: of the search.
        statistics: sequences of refits; None: the default.
    """

    config: PlanConfig
    estimate: SearchEstimate
    models: PlannedModels
    shape: Shape
    time: SearchTime
    statistics: int | None

    def seconds(self) -> dict[str, float]:
        """Of every stage that is asked for and can be told."""
        found, config = dict[str, float](), self.config
        if config.budgets and not self.estimate.target.source.is_encoder_decoder:
            found |= self._written()
        if config.recover is not None:
            found["recover"] = self._recovered()
        if config.eval is not None:
            found["eval"] = self._read(self._text(config.eval), *self.models.evaluated)
        if config.bench is not None and self._bench.backend == _TIMED:
            found["bench"] = self._benched()
        return found

    @property
    def unknown(self) -> tuple[str, ...]:
        """Texts and tasks whose size is not known, so that their time is in no stage."""
        config = self.config
        texts = [self._text()] if config.text is not None and config.budgets else []
        texts += [self._text(config.eval)] if config.eval is not None else []
        return tuple(dict.fromkeys(name for text in texts for name in text.unknown))

    @property
    def untimed(self) -> tuple[str, ...]:
        """Stages that are asked for and whose time is not told."""
        backend = self._bench.backend if self.config.bench is not None else _TIMED
        return () if backend == _TIMED else (f"bench in {backend}",)

    def _written(self) -> dict[str, float]:
        """The checkpoints, and what they are compared with."""
        pruned = [
            replace(self.estimate, arch=arch).prune(self.shape, self.statistics, **self._prune)
            for arch in self.models.pruned
        ]
        text = None if self.config.text is None else self._text()
        if self.config.front:
            read = 0.0 if text is None else self._read(text, *self.models.pruned)
            return {"checkpoints": sum(pruned) + read} if self.config.sizes_of_checkpoints else {}
        if text is None:
            return {"prune": pruned[0]}
        (found,) = self.models.pruned
        rivals = self.config.random_architectures + 1
        # Found and uniform are read as checkpoints, too, of which the found one is written already.
        more = [found] * (rivals + 1 + 2)
        return {"prune": pruned[0], "comparison": self._read(text, *more) + (rivals + 1) * self.time.each + pruned[0]}

    @property
    def _prune(self) -> dict[str, Any]:
        """What of the settings of prune takes time, as given or by default."""
        section = self.config.prune or {}
        said = {
            name: section.get(name, PruneConfig.model_fields[name].default)
            for name in ("scales", "reconstruct", "reconstruct_steps")
        }
        return {"scales": said["scales"], "steps": said["reconstruct_steps"] if said["reconstruct"] == "blocks" else 0}

    def _text(self, section: dict[str, Any] | None = None) -> Reading:
        config = self.config
        return reading(config.text, config.windows, self.shape.seq_len, section, text_field=config.text_field)

    def _read(self, text: Reading, *archs: Architecture) -> float:
        """The base and these."""
        base = self.estimate.target.space.base
        return sum(text.seconds(self.estimate, arch, self.shape) for arch in (base, *archs))

    def _recovered(self) -> float:
        target, rates = self.estimate.target, self.estimate.rates
        trained = training(self.config.recover or {}, target.source.positions)
        head = target.source.family.head_weights(target.source.config)
        context = per_stack(target.blocks, self.shape).seq_len

        def flops(arch: Architecture) -> float:
            return costs.flops_per_token(target.space.layers, head, arch, context)

        half, of_base = self.shape.element == 2, flops(target.space.base)
        return sum(trained.seconds(flops(arch), of_base, rates.flops, half=half) for arch in self.models.recovered)

    @property
    def _bench(self) -> BenchConfig:
        return BenchConfig(models=("-",), **(self.config.bench or {}))

    def _benched(self) -> float:
        from tracenas.commands.bench.trials import trial_settings  # imports torch

        target = self.estimate.target
        archs = (target.space.base, *self.models.timed)
        batches = trial_settings(self._bench, [target.source])
        return bench_seconds(self._bench, batches, self.estimate, archs, self.shape)
