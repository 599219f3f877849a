"""Scoring candidates by a weighted sum of rank-normalised proxies, relative to a pool of reference architectures."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

from tracenas.models.surgery.supernet import PlainRealisation, Realisation
from tracenas.proxies.combination import Choice, RankScale, combined
from tracenas.scoring.evaluator import trace_details
from tracenas.scoring.panel import Panel
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.score import Score

__all__ = ["CombinedEvaluator"]


class CombinedEvaluator:
    """`evaluate(list[Architecture]) -> Score…`, as `Evaluator`, for several proxies.

    Every proxy sees the realisation that it needs. What a candidate counts as (its loss in the journal, and what
    `prune` makes of it) is compensated as soon as one of the proxies is.

    Args:
        panel: of all the choice's proxies.
        choice: their weights.
        scales: their ranks in the reference pool.
        compensated: the panel's compensated realisation, if it has one.
    """

    def __init__(
        self,
        panel: Panel,
        space: SearchSpace,
        choice: Choice,
        scales: Mapping[str, RankScale],
        compensated: Realisation | None = None,
    ) -> None:
        self.panel, self.space, self.choice, self.scales = panel, space, choice, dict(scales)
        self.realisation: Realisation = compensated if compensated is not None else PlainRealisation()
        self.base_loss = panel.base_loss

    def __call__(self, candidates: Sequence[Architecture]) -> Iterator[Score]:
        """One score per candidate, in order; one that any proxy fails on is scored as failed, with the reason."""
        for arch in candidates:
            yield self.score(arch)

    def score(self, arch: Architecture) -> Score:
        """Score one candidate; the journal also gets every proxy's own value."""
        started = time.perf_counter()
        result = self.panel.run(arch)
        measured = result.compensated if self.choice.compensated else result.plain
        loss = measured.loss if measured is not None and math.isfinite(measured.loss) else None
        values = {name: s.value for name, s in result.scores.items()}
        extra = {"proxies": values}
        found = {name: value for name, value in values.items() if value is not None}
        failed = next((f"{name}: {s.reason}" for name, s in result.scores.items() if s.value is None), None)
        score = -math.inf if failed else combined(self.choice, self.scales, found)
        if measured is not None and failed is None:
            extra |= trace_details(self.space, measured)
        return Score(score, loss=loss, seconds=time.perf_counter() - started, extra=extra, reason=failed)
