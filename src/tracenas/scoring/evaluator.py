"""Scoring candidates: realise, run the calibration, measure, score. Nothing of a candidate survives but its score."""

import math
from typing import Any

from torch import Tensor

from tracenas.models.functionals.memory import attempt
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import Measurement, Proxy
from tracenas.proxies.phi import correlations
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.scoring.measuring import BatchReading, Measurer, ScoringSettings, proxy_value
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.space.costs import sub_blocks
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.score import Score

__all__ = ["Evaluator", "ScoringSettings", "Total", "trace_details"]


class Evaluator(Scorer[Architecture]):
    """`evaluate(list[Architecture]) -> Score…` for one model and one calibration set.

    Args:
        net: the super-network.
        space: for parameter counts.
        tokens: calibration token ids, int64 [N, L].
        proxy: what candidates are scored by.
        realisation: how candidates are realised; prefix views by default.
        table: for a proxy that reads predicted rises.

    Raises:
        UserError: if the base model's own loss on the calibration is not finite.
    """

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        tokens: Tensor,
        proxy: Proxy,
        settings: ScoringSettings,
        realisation: Realisation | None = None,
        table: SensitivityTable | None = None,
    ) -> None:
        self.net, self.space, self.proxy, self.settings = net, space, proxy, settings
        self.realisation = realisation or Realisation()
        self.measurer = Measurer(net, space, tokens, proxy.needs, settings, table)
        self.tokens = self.measurer.tokens
        self.base_loss = self.measurer.base_loss
        self.pieces = (slice(0, len(self.tokens)),)

    def decoded(self, data: Any) -> Architecture:
        """An architecture of the space."""
        return self.space.validate(Architecture.from_json(data, where="task"))

    def _score(self, candidate: Architecture) -> Score:
        score, reason = attempt(lambda: self.valued(self.measure(candidate)), self.net.device)
        return score or Score.failed(str(reason))

    def valued(self, measurement: Measurement) -> Score:
        """The proxy's value of a measurement, its loss, and details for the journal; or why there is no value."""
        value, reason = proxy_value(self.proxy, measurement, self.measurer.unsupported)
        extra = {} if value is None else trace_details(self.space, measurement)
        return Score(-math.inf if value is None else value, loss=measurement.loss, extra=extra, reason=reason)

    def tally(self, candidate: Architecture) -> "Total":
        """What adds up the readings of a candidate; of an additive proxy."""
        return Total(self, candidate)

    def measure(self, arch: Architecture) -> Measurement:
        """Loss and whatever else the proxy reads."""
        return self.measurer.measure(arch, self.realisation, self.proxy.needs)


class Total:
    """A candidate's readings put together: what one pass over all of the calibration measures."""

    may_stop = stopped = False

    def __init__(self, evaluator: Evaluator, candidate: Architecture) -> None:
        self._evaluator, self._candidate = evaluator, candidate
        self._loss = 0.0
        self._losses: list[float] = []
        self._kls: list[float] = []

    def add(self, reading: BatchReading) -> None:
        """The next micro-batch's."""
        self._loss += reading.share
        self._losses += reading.measurement.losses
        self._kls += reading.measurement.kls

    def score(self) -> Score:
        """Of all sequences."""
        parameters = self._evaluator.space.parameters(self._candidate)
        losses, kls = tuple(self._losses), tuple(self._kls)
        return self._evaluator.valued(Measurement(parameters, self._loss, losses=losses, kls=kls))


def trace_details(space: SearchSpace, measurement: Measurement) -> dict[str, Any]:
    """What the journal records beside score and loss: ρ per layer, and why one is undefined."""
    if not measurement.sums:
        return {}
    rho, reasons = correlations(measurement)
    by_name: dict[str, list[float | None]] = {}
    for index, spec, _ in sub_blocks(space.layers, space.base):
        by_name.setdefault(spec.name, [None] * len(space.layers))[index] = rho.get((index, spec.name))
    return {"rho": by_name, **({"undefined": reasons} if reasons else {})}
