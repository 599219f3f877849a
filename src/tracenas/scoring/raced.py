"""Scoring with racing: a candidate is measured a few sequences at a time, and dropped once it is clearly worse."""

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from tracenas.models.functionals.memory import attempt
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.front_bars import FrontBars
from tracenas.scoring.racing import Bar, generation_bar, looks
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score

__all__ = ["RacingEvaluator"]


class RacingEvaluator(Scorer[Architecture]):
    """`evaluate(list[Architecture]) -> Score…` for an additive proxy (`racing`).

    A candidate that is stopped is scored by its estimate, which lies below the worst elite's score; the journal has
    `terms`, the proxy's term of every sequence that was measured, and of a stopped candidate `stopped`, how many that
    are. Its loss is unknown. What is measured depends on the candidate and on the elites at the start of its
    generation alone, so a resumed run measures the same.

    Args:
        evaluator: of one additive proxy.
        elites: how many elites there are once there are enough; nobody is stopped before.
        front: where candidates are no elites' rivals, but their neighbours' on a front; None: the elites'.

    Raises:
        ValueError: if the proxy is not additive.
    """

    def __init__(self, evaluator: Evaluator, elites: int, front: FrontBars | None = None) -> None:
        if evaluator.proxy.terms is None:
            raise ValueError(f"proxy '{evaluator.proxy.name}' is not additive over sequences")
        self.evaluator, self.elites, self._front = evaluator, elites, front
        self.base_loss = evaluator.base_loss
        self.realisation = evaluator.realisation
        self.space = evaluator.space
        self.pieces = tuple(looks(evaluator.tokens.shape[0]))
        self.bar: Bar | None = None
        """Of the generation that is scored, on no front; None: nobody is stopped."""

    def on_generation(self, elites: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]) -> None:
        """Set the bar for the generation that begins: the worst of a full set of elites, or the front's.

        Args:
            elites: journal records, best first.
            records: of all candidates so far.
        """
        if self._front is not None:
            self._front.begin(records)
            return
        measured = [r["terms"] for r in records if r["score"] is not None and "stopped" not in r]
        self.bar = generation_bar([r["terms"] for r in elites], measured) if len(elites) >= self.elites else None

    def decoded(self, data: Any) -> Architecture:
        """An architecture of the space."""
        return self.space.validate(Architecture.from_json(data, where="task"))

    def bar_of(self, candidate: Architecture) -> Bar | None:
        """What a candidate must not be clearly worse than."""
        return self.bar if self._front is None else self._front.of(candidate)

    def take(self, bar: Bar | None) -> None:
        """Score what comes next against this bar, whatever there was: that of another process."""
        self._front, self.bar = None, bar

    def _score(self, candidate: Architecture) -> Score:
        """On as many sequences as it takes."""
        bar = self.bar_of(candidate)
        result, reason = attempt(lambda: self._measured(candidate, bar), self.evaluator.net.device)
        if result is None:
            return Score.failed(str(reason))
        losses, terms = result
        if not all(math.isfinite(v) for v in (*losses, *terms)):
            return Score.failed("loss or score is not finite")
        if len(terms) < self.evaluator.tokens.shape[0]:
            assert bar is not None
            return Score(-bar.estimate(terms), extra={"terms": terms, "stopped": len(terms)})
        loss = math.fsum(losses) / len(losses)
        return Score(-math.fsum(terms) / len(terms), loss=loss, extra={"terms": terms})

    def _measured(self, arch: Architecture, bar: Bar | None) -> tuple[list[float], list[float]]:
        """Losses and the proxy's terms of the first sequences: all of them, or until the bar beats the candidate."""
        evaluator = self.evaluator
        assert evaluator.proxy.terms is not None
        losses: list[float] = []
        terms: list[float] = []
        parts = evaluator.measurer.stream(arch, evaluator.realisation, evaluator.proxy.needs, self.pieces)
        ends = {piece.stop for piece in self.pieces}
        with closing(parts):
            for part in parts:
                losses += part.losses
                terms += evaluator.proxy.terms(part)
                if bar is not None and len(terms) in ends and bar.beats(terms):
                    break
        return losses, terms
