"""What a study measures of an architecture: held-out loss right after pruning, after recovery, with the shared LoRA."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from tracenas.commands.study.plan import LORA, StudyPlan
from tracenas.models.functionals.memory import attempt
from tracenas.models.functionals.perplexity import perplexity
from tracenas.models.surgery.private import private_weights
from tracenas.models.surgery.shared_lora import SharedLora
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.recovery.short import ShortSettings, short_recovery
from tracenas.reporting.progress import phase
from tracenas.space.architecture import Architecture

__all__ = ["Measured", "StudyMeasurer"]

Measured = dict[str, dict[str, Any]]


@dataclass
class StudyMeasurer:
    """Measures the targets of one architecture after the other; the super-network's weights are never written.

    Args:
        realisations: by start.
        windows: held-out token ids, int64 [N, L].
        orders: training batches' rows per seed: seed → step → int64 [batch, L].
        micro_batch: held-out windows per forward pass.
        accuracy: a model's accuracy by task.
    """

    net: Supernet
    plan: StudyPlan
    realisations: Mapping[str, Realisation]
    windows: Tensor
    orders: Callable[[int], list[Tensor]]
    micro_batch: int
    training: ShortSettings
    lora: SharedLora | None = None
    accuracy: Callable[[Any], Mapping[str, float]] | None = None

    def loss(self, model: Any) -> float:
        """Held-out loss, nats per token.

        Raises:
            ValueError: if it is not finite.
        """
        with phase("held-out loss") as steps:
            value = perplexity(model, self.windows, self.micro_batch, report=steps.report).nll
        if not math.isfinite(value):
            raise ValueError("held-out loss is not finite")
        return value

    def measure(self, arch: Architecture) -> Measured:
        """Target → `value` (None if it failed), `by_seed`, `reason`, `seconds`."""
        out: Measured = {}
        for start in self.plan.starts:
            out |= self._guarded([f"{start}_0"], partial(self._pruned, arch, start))
            if self.plan.marks:
                names = [f"{start}_{mark}" for mark in self.plan.marks]
                last = start == self.plan.starts[-1]
                names += [f"task_{name}" for name in self.plan.tasks] if last else []
                out |= self._guarded(names, partial(self._recovered, arch, start, last))
        if self.lora is not None:
            out |= self._guarded([LORA], lambda: self._adapted(arch))
        return {t.name: out[t.name] for t in self.plan.targets()}

    def _guarded(self, names: list[str], measure: Callable[[], dict[str, list[float]]]) -> Measured:
        """Values with their mean; a failure of torch's costs these targets of this architecture."""
        started = time.perf_counter()
        values, reason = attempt(measure, self.net.device)
        seconds = (time.perf_counter() - started) / len(names)
        return {
            name: {
                "value": None if values is None else math.fsum(values[name]) / len(values[name]),
                "by_seed": [] if values is None else values[name],
                "seconds": seconds,
                **({"reason": reason} if reason else {}),
            }
            for name in names
        }

    def _pruned(self, arch: Architecture, start: str) -> dict[str, list[float]]:
        with self.net.realise(arch, self.realisations[start]) as model:
            return {f"{start}_0": [self.loss(model)]}

    def _recovered(self, arch: Architecture, start: str, with_tasks: bool) -> dict[str, list[float]]:
        out: dict[str, list[float]] = {}
        for seed in range(self.plan.seeds):
            with self.net.realise(arch, self.realisations[start]) as model, private_weights(model) as weights:
                losses = self._trained(model, weights, seed)
                accuracies = self.accuracy(model) if self.accuracy is not None and with_tasks else {}
            for mark, value in losses.items():
                out.setdefault(f"{start}_{mark}", []).append(value)
            for name, value in accuracies.items():
                out.setdefault(f"task_{name}", []).append(value)
        return out

    def _trained(self, model: Any, weights: Sequence[nn.Parameter], seed: int) -> dict[int, float]:
        """Held-out losses of a short recovery, by mark."""
        marks = self.plan.marks
        with phase(f"short recovery, order {seed + 1}", marks[-1]) as steps:

            def show(_: int, loss: float) -> None:
                steps.tell(f"loss {loss:.4f}")
                steps.advance()

            return short_recovery(
                model, weights, self.orders(seed), marks, partial(self.loss, model), self.training, on_step=show
            )

    def _adapted(self, arch: Architecture) -> dict[str, list[float]]:
        assert self.lora is not None
        with self.net.realise(arch) as model, self.lora.attached(arch):
            return {LORA: [self.loss(model)]}
