"""Scoring unstructured candidates (TraceNAS D.4): masked weights in place of the base's, Φ from their traces.

The base's tensors are never written: a candidate's masked copies stand in their place while it is measured, and
the originals return also after an exception. A trace at full rank is the gradient through the mask; at a lower
rank it is that of adapters beside the masked weights, which have no mask, as published.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.families import present
from tracenas.models.functionals.loss import gradient_scale, next_token_nll
from tracenas.models.functionals.memory import attempt
from tracenas.models.surgery.ordering import Key, Ordering
from tracenas.models.surgery.replacing import replace_parameter
from tracenas.models.surgery.supernet import Supernet
from tracenas.proxies import Measurement, Proxy
from tracenas.proxies.phi import correlations
from tracenas.proxies.trace import FULL, Trace, TraceRecorder, correlation_sums
from tracenas.saliency.gradients import GradientStore
from tracenas.saliency.layerwise import BlockWalk, measured_layers
from tracenas.saliency.linear import linear_module, projections
from tracenas.saliency.masks import Sparsity, keep
from tracenas.saliency.sparsify import checked_score
from tracenas.saliency.unstructured import Metric
from tracenas.scoring.measuring import ScoringSettings
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.space.sparsity import Shares
from tracenas.strategies.score import Score

__all__ = ["MaskedWeights", "SparsityEvaluator"]


class MaskedWeights:
    """A model, every weight's score by a metric on the dense model, and the masks of any shares.

    Args:
        tokens: calibration, for the metric's statistics.
        compare: `row` or `layer`.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Any],
        metric: Metric,
        tokens: Tensor,
        *,
        compare: str = "row",
        micro_batch: int = 1,
        gradients: GradientStore | None = None,
        seed: int = 0,
    ) -> None:
        self.model, self.blocks, self.compare = model, tuple(blocks), compare
        walk = BlockWalk(model, blocks, tokens, micro_batch, gradients=gradients, seed=seed)
        self._scores = {
            (layer.block, layer.projection.path): checked_score(metric, layer, measured)
            for layer, measured in measured_layers(walk, metric.needs)
        }

    def masks(self, shares: Mapping[Key, float]) -> dict[tuple[int, str], Tensor]:
        """Where weights stay, per (block, projection)."""
        return {
            (index, p.path): keep(self._scores[index, p.path], Sparsity(shares[index, sub.spec.name]), self.compare)
            for index, sub, p in projections(self.blocks)
        }

    @contextmanager
    def realise(self, masks: Mapping[tuple[int, str], Tensor]) -> Iterator[Any]:
        """The model with masked weights until the block ends; the base's own parameters come back untouched."""
        with ExitStack() as undo:
            for index, _, p in projections(self.blocks):
                module = linear_module(self.model, self.blocks[index], p)
                masked = module.weight.detach().masked_fill(~masks[index, p.path], 0.0)
                replace_parameter(module, "weight", masked, undo)
            yield self.model


class SparsityEvaluator(Scorer[Shares]):
    """`evaluate(list[Shares]) -> Score…` for one model, metric and calibration set.

    Args:
        base: the architecture of the whole model (every unit kept).
        parameters: of a candidate, for the measurement.

    Raises:
        UserError: if the base model's own loss on the calibration is not finite.
    """

    def __init__(
        self,
        masked: MaskedWeights,
        base: Architecture,
        parameters: Any,
        tokens: Tensor,
        proxy: Proxy,
        settings: ScoringSettings,
    ) -> None:
        self.masked, self.base, self.parameters = masked, base, parameters
        self.proxy, self.settings = proxy, settings
        self.net = Supernet(masked.model, masked.blocks, _identity_order(masked.blocks))
        self.tokens = tokens.to(self.net.device)
        self._recorder = TraceRecorder(self.net, settings.rank, settings.seed) if "trace" in proxy.needs else None
        self._scale = gradient_scale(masked.model, tokens.numel())
        self.base_loss, self._base = self._run()
        if not math.isfinite(self.base_loss):
            raise UserError("the base model's loss on the calibration data is not finite; try dtype=fp32")

    def decoded(self, data: Any) -> Shares:
        """Shares of the model's sub-blocks."""
        return Shares.from_json(data, where="task")

    def _score(self, candidate: Shares) -> Score:
        result, reason = attempt(lambda: self._scored(candidate), self.net.device)
        return Score.failed(str(reason)) if result is None else result

    def _scored(self, shares: Shares) -> Score:
        measured = self.measure(shares)
        extra: dict[str, Any] = {}
        if measured.sums:
            rho, reasons = correlations(measured)
            extra = {"rho": {f"{i}.{n}": v for (i, n), v in rho.items()}, **({"undefined": reasons} if reasons else {})}
        return Score(self.proxy.score(measured), loss=measured.loss, extra=extra)

    def measure(self, shares: Shares) -> Measurement:
        """Loss and, if the proxy wants it, the trace's sums against the base's; r is a sub-block's kept share."""
        by_key = shares.by_key()
        masks = self.masked.masks(by_key)
        with self.masked.realise(masks):
            loss, trace = self._run()
        sums = {}
        if trace is not None and self._base is not None:
            if self.settings.rank == FULL:
                for name, part in trace.parts.items():
                    part.masked_fill_(~masks[name], 0.0)
            against_base = correlation_sums(self.net, self.base, trace, self._base)
            sums = {key: replace(value, retention=1 - by_key[key]) for key, value in against_base.items()}
        return Measurement(self.parameters(shares), loss, sums)

    def _run(self) -> tuple[float, Trace | None]:
        if self._recorder is None:
            with torch.no_grad():
                return self._mean_loss(), None
        with self._recorder.record(self.base) as trace, torch.enable_grad():
            loss = self._mean_loss()
            trace.divide(self._scale)
            return loss, trace

    def _mean_loss(self) -> float:
        total = torch.zeros((), dtype=torch.float64)
        count = self.tokens.shape[0] * (self.tokens.shape[1] - 1)
        for batch in self.tokens.split(self.settings.micro_batch):
            loss = next_token_nll(self.masked.model, batch).sum() / count
            if loss.requires_grad:
                (loss * self._scale).backward()
            total += loss.detach().double().cpu()
        return float(total)


def _identity_order(blocks: Sequence[Any]) -> Ordering:
    """Every unit in its own place."""
    units = {key: sub.spec.units for key, sub in present(blocks)}
    return Ordering(
        {key: np.arange(n, dtype=np.int64) for key, n in units.items()}, {key: np.ones(n) for key, n in units.items()}
    )
