"""Many proxies of one candidate, from as few passes as they need: plain, compensated, a few steps apart, or none."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tracenas.models.functionals.memory import attempt
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import Measurement, Proxy
from tracenas.saliency.sensitivity.table import SensitivityTable
from tracenas.scoring.measuring import Measurer, ScoringSettings, proxy_value
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace

__all__ = ["Panel", "PanelResult", "PanelScore"]


@dataclass(frozen=True)
class PanelScore:
    """What one proxy says about a candidate.

    Args:
        value: its score, higher is better; None where it has none.
        seconds: of the pass that it was read off (shared by all proxies of that pass) and of reading it.
        reason: why there is no value.
    """

    value: float | None
    seconds: float
    reason: str | None = None


@dataclass(frozen=True)
class PanelResult:
    """All scores of a candidate, and the measurements they were read off.

    Args:
        scores: by the proxies' names, in the panel's order.
        plain, compensated: None where no proxy wanted such a pass, or it failed for all of them together.
    """

    scores: dict[str, PanelScore]
    plain: Measurement | None
    compensated: Measurement | None


class Panel:
    """Scores candidates by several proxies.

    Args:
        net: the super-network.
        space: for parameter counts.
        tokens: calibration token ids, int64 [N, L].
        proxies: with different names.
        settings: how candidates are measured.
        compensated: the realisation of the proxies that need `compensated`.
        table: of those that need `sensitivity`.

    Raises:
        UserError: if the base model's own loss on the calibration is not finite.
        ValueError: if a proxy needs a compensated realisation or a table and none is given, or two have the same name.
    """

    def __init__(
        self,
        net: Supernet,
        space: SearchSpace,
        tokens: Tensor,
        proxies: Sequence[Proxy],
        settings: ScoringSettings,
        compensated: Realisation | None = None,
        table: SensitivityTable | None = None,
    ) -> None:
        self.proxies = tuple(proxies)
        self.names = tuple(p.name for p in self.proxies)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"a panel needs proxies with different names, not {', '.join(self.names)}")
        self.net = net
        needs = frozenset[str]().union(*(p.needs for p in proxies))
        self.measurer = Measurer(net, space, tokens, needs, settings, table)
        self.base_loss = self.measurer.base_loss
        self._passes: list[tuple[bool, Realisation, list[Proxy]]] = []
        self._unrun = [p for p in self.proxies if not p.runs]
        for refitted in (False, True):
            wanted = [p for p in self.proxies if p.runs and ("compensated" in p.needs) is refitted]
            if wanted and refitted and compensated is None:
                raise ValueError(f"proxy '{wanted[0].name}' needs a compensated realisation")
            if wanted:
                how = compensated if refitted and compensated is not None else Realisation()
                self._passes.append((refitted, how, wanted))

    def measure(self, arch: Architecture) -> dict[str, PanelScore]:
        """Every proxy's score of one candidate; one that fails has a reason, and the others their values."""
        return self.run(arch).scores

    def run(self, arch: Architecture) -> PanelResult:
        """The same with the measurements."""
        scores: dict[str, PanelScore] = {}
        measured: dict[bool, Measurement | None] = {False: None, True: None}
        if self._unrun:
            self._run(arch, Realisation(), self._unrun, scores)
        for refitted, how, wanted in self._passes:
            measured[refitted] = self._run(arch, how, wanted, scores)
        ordered = {name: scores[name] for name in self.names}
        return PanelResult(ordered, measured[False], measured[True])

    def _run(
        self, arch: Architecture, how: Realisation, wanted: list[Proxy], scores: dict[str, PanelScore]
    ) -> Measurement | None:
        """One pass for all of `wanted`; if it fails, one for each of them, so that none is lost for another's sake."""
        needs = frozenset[str]().union(*(p.needs for p in wanted)) - {"steps"}
        started = time.perf_counter()
        measured, reason = attempt(lambda: self.measurer.measure(arch, how, needs), self.net.device)
        seconds = time.perf_counter() - started
        if measured is None:
            if len(wanted) > 1:
                parts = [self._run(arch, how, [proxy], scores) for proxy in wanted]
                return next((m for m in parts if m is not None), None)
            scores[wanted[0].name] = PanelScore(None, seconds, reason)
            return None
        for proxy in wanted:
            scores[proxy.name] = self._score(proxy, arch, how, measured, seconds)
        return measured

    def _score(
        self, proxy: Proxy, arch: Architecture, how: Realisation, measured: Measurement, seconds: float
    ) -> PanelScore:
        started = time.perf_counter()

        def read() -> tuple[float | None, str | None]:
            final = self.measurer.recovered(measured, arch, how) if "steps" in proxy.needs else measured
            return proxy_value(proxy, final, self.measurer.unsupported)

        result, failed = attempt(read, self.net.device)
        value, reason = result or (None, failed)
        return PanelScore(value, seconds + time.perf_counter() - started, reason)
