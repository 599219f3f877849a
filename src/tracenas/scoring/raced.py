"""Scoring with racing: a candidate is measured a few sequences at a time, and dropped once it is clearly worse."""

import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from typing import Any

from tracenas.models.functionals.memory import attempt
from tracenas.proxies import Proxy
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.front_bars import FrontBars
from tracenas.scoring.measuring import BatchReading
from tracenas.scoring.racing import Bar, generation_bar, looks
from tracenas.scoring.scorer import Scorer
from tracenas.space.architecture import Architecture
from tracenas.strategies.score import Score

__all__ = ["Race", "RacingEvaluator"]


class Race:
    """One candidate's race: its losses and the proxy's terms of the sequences so far.

    Args:
        proxy: an additive one.
        bar: what it must not be clearly worse than; None: nothing.
        ends: numbers of sequences after which that is asked, the last one all of them.
    """

    def __init__(self, proxy: Proxy, bar: Bar | None, ends: Collection[int]) -> None:
        assert proxy.terms is not None
        self._terms_of, self._bar, self._ends = proxy.terms, bar, ends
        self._losses: list[float] = []
        self._terms: list[float] = []
        self.may_stop = bar is not None
        self.stopped = False
        """Whether the bar has beaten it."""

    def add(self, reading: BatchReading) -> None:
        """The next micro-batch's."""
        self._losses += reading.measurement.losses
        self._terms += self._terms_of(reading.measurement)
        self.stopped = self._bar is not None and len(self._terms) in self._ends and self._bar.beats(self._terms)

    def score(self) -> Score:
        """Once it is stopped, or has run over all sequences."""
        losses, terms = self._losses, self._terms
        if not all(math.isfinite(v) for v in (*losses, *terms)):
            return Score.failed("loss or score is not finite")
        if len(terms) < max(self._ends):
            assert self._bar is not None
            return Score(-self._bar.estimate(terms), extra={"terms": terms, "stopped": len(terms)})
        loss = math.fsum(losses) / len(losses)
        return Score(-math.fsum(terms) / len(terms), loss=loss, extra={"terms": terms})


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

    def tally(self, candidate: Architecture) -> Race:
        """The candidate's race, which begins."""
        return Race(self.evaluator.proxy, self.bar_of(candidate), {piece.stop for piece in self.pieces})

    def _score(self, candidate: Architecture) -> Score:
        """On as many sequences as it takes."""
        race = self.tally(candidate)
        _, reason = attempt(lambda: self._run(candidate, race), self.evaluator.net.device)
        return race.score() if reason is None else Score.failed(reason)

    def _run(self, candidate: Architecture, race: Race) -> None:
        """Over all sequences, or until it is stopped."""
        evaluator = self.evaluator
        readings = evaluator.measurer.stream(candidate, evaluator.realisation, evaluator.proxy.needs, self.pieces)
        with closing(readings):
            for reading in readings:
                race.add(reading)
                if race.stopped:
                    break
