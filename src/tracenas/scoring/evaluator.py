"""Scoring candidates: realise, run the calibration, measure, score. Nothing of a candidate survives but its score."""

import gc
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.errors import UserError
from tracenas.models.loss import next_token_nll
from tracenas.models.ordering import Key
from tracenas.models.supernet import PlainRealisation, Realisation, Supernet
from tracenas.proxies import Measurement, Proxy
from tracenas.proxies.phi import correlations
from tracenas.proxies.trace import Trace, TraceRecorder, correlation_sums
from tracenas.search.score import Score
from tracenas.space.architecture import Architecture
from tracenas.space.costs import sub_blocks
from tracenas.space.search_space import SearchSpace

__all__ = ["Evaluator", "Settings"]


@dataclass(frozen=True)
class Settings:
    """How candidates are measured.

    Args:
        rank: of the gradient traces; 0 for exact gradients.
        seed: of the projections A.
        micro_batch: sequences per forward pass.
    """

    rank: int = 64
    seed: int = 0
    micro_batch: int = 1


class Evaluator:
    """`evaluate(list[Architecture]) -> Score…` for one model and one calibration set.

    Args:
        net: the super-network.
        space: for parameter counts.
        tokens: calibration token ids, int64 [N, L].
        proxy: what candidates are scored by.
        realisation: how candidates are realised; prefix views by default.

    Raises:
        UserError: if the base model's own loss on the calibration is not finite.
    """

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        tokens: Tensor,
        proxy: Proxy,
        settings: Settings,
        realisation: Realisation | None = None,
    ) -> None:
        self.net, self.space, self.proxy, self.settings = net, space, proxy, settings
        self.realisation = realisation or PlainRealisation()
        self.tokens = tokens.to(net.device)
        self.wants_trace = "trace" in proxy.needs
        self._base: Trace | None = None
        self._base_sums: dict[Key, Any] = {}
        if self.wants_trace:
            self._recorder = TraceRecorder(net, settings.rank, settings.seed)
        self.base_loss = self._anchor()

    def _anchor(self) -> float:
        """The base model's loss and trace: the functional anchor of §3.4."""
        loss, self._base = self._run(self.space.base, PlainRealisation())
        if not math.isfinite(loss):
            raise UserError("the base model's loss on the calibration data is not finite; try dtype=fp32")
        return loss

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """One score per candidate, in order; a candidate that fails is scored as failed, with the reason."""
        for arch in candidates:
            yield self.score(arch)

    def score(self, arch: Architecture) -> Score:
        """Score one candidate."""
        started = time.perf_counter()
        try:
            measurement = self.measure(arch)
            value, reason = self.proxy.score(measurement), None
            if not (math.isfinite(value) and math.isfinite(measurement.loss)):
                value, reason = -math.inf, "loss or score is not finite"
            extra = self._details(measurement) if reason is None else {}
            loss = measurement.loss if math.isfinite(measurement.loss) else None
        except (RuntimeError, ValueError, IndexError) as error:  # out of memory and shape errors of torch
            gc.collect()
            if self.net.device.type == "cuda":
                torch.cuda.empty_cache()
            line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            value, reason, loss, extra = -math.inf, f"{type(error).__name__}: {line[:200]}", None, {}
        return Score(score=value, loss=loss, seconds=time.perf_counter() - started, extra=extra, reason=reason)

    def measure(self, arch: Architecture) -> Measurement:
        """Loss and, if the proxy wants it, the trace's sums against the base's."""
        loss, trace = self._run(arch, self.realisation)
        sums = {}
        if trace is not None and self._base is not None:
            sums = correlation_sums(self.net, arch, trace, self._base, self._base_sums)
        return Measurement(self.space.parameters(arch), loss, sums)

    def _run(self, arch: Architecture, realisation: Realisation) -> tuple[float, Trace | None]:
        with self.net.realise(arch, realisation) as model:
            if not self.wants_trace:
                with torch.no_grad():
                    return self._mean_loss(model), None
            with self._recorder.record(arch) as trace, torch.enable_grad():
                return self._mean_loss(model), trace

    def _mean_loss(self, model: Any) -> float:
        """E_b[L]; where gradients are on, every micro-batch is followed by its backward pass."""
        total = torch.zeros((), dtype=torch.float64)
        count = self.tokens.shape[0] * (self.tokens.shape[1] - 1)
        for batch in self.tokens.split(self.settings.micro_batch):
            loss = next_token_nll(model, batch).sum() / count
            if loss.requires_grad:
                loss.backward()
            total += loss.detach().double().cpu()
        return float(total)

    def _details(self, measurement: Measurement) -> dict[str, Any]:
        """What the journal records beside score and loss: ρ per layer, and why one is undefined."""
        if not measurement.sums:
            return {}
        rho, reasons = correlations(measurement)
        by_name: dict[str, list[float | None]] = {}
        for index, spec, _ in sub_blocks(self.space.layers, self.space.base):
            by_name.setdefault(spec.name, [None] * len(self.space.layers))[index] = rho.get((index, spec.name))
        return {"rho": by_name, **({"undefined": reasons} if reasons else {})}
