"""Scoring candidates by a weighted sum of rank-normalised proxies, relative to a pool of reference architectures."""

import math
from collections.abc import Mapping
from typing import Any

from tracenas.models.surgery.supernet import Realisation
from tracenas.proxies.combination import Choice, RankScale, combined
from tracenas.scoring.evaluator import trace_details
from tracenas.scoring.panel import Panel
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.space.search_space import SearchSpace
from tracenas.strategies.score import Score

__all__ = ["CombinedEvaluator"]


class CombinedEvaluator(Scorer[Architecture]):
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
        self.realisation: Realisation = compensated if compensated is not None else Realisation()
        self.base_loss = panel.base_loss

    def decoded(self, data: Any) -> Architecture:
        """An architecture of the space."""
        return self.space.validate(Architecture.from_json(data, where="task"))

    def _score(self, candidate: Architecture) -> Score:
        """As failed if any proxy fails; the journal also gets every proxy's own value."""
        result = self.panel.run(candidate)
        measured = result.compensated if self.choice.compensated else result.plain
        loss = measured.loss if measured is not None and math.isfinite(measured.loss) else None
        values = {name: s.value for name, s in result.scores.items()}
        extra: dict[str, Any] = {"proxies": values}
        failed = next((f"{name}: {s.reason}" for name, s in result.scores.items() if s.value is None), None)
        if failed is not None:
            return Score(-math.inf, loss=loss, extra=extra, reason=failed)
        if measured is not None:
            extra |= trace_details(self.space, measured)
        defined = {name: value for name, value in values.items() if value is not None}
        return Score(combined(self.choice, self.scales, defined), loss=loss, extra=extra)
