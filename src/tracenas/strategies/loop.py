"""The search loop: ask, evaluate, tell; every result is on disk before the next one is awaited."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Generic, TypeVar

from tracenas.errors import UserError
from tracenas.journal import Journal
from tracenas.strategies.ahead import Ahead
from tracenas.strategies.protocol import Batch, Candidate, Proposal
from tracenas.strategies.result import Generation, Record, SearchResult, generations, journal_record
from tracenas.strategies.score import Score, is_number
from tracenas.strategies.settled import Settled, settled
from tracenas.strategies.strategy import Strategy

__all__ = ["Evaluate", "Progress", "replayed", "run_search"]

C = TypeVar("C", bound=Candidate)
_FOREIGN = "the journal is of another run"
Evaluate = Callable[[Sequence[C]], Iterable[Score]]
"""Scores of the candidates, in order; a generator's are recorded one by one as they come.

The candidates are drawn as they are asked for, all of them by `len`: what goes through them one by one works beside the
strategy, where it is other processes that work.
"""
OnGeneration = Callable[[Sequence[Record], Sequence[Record]], None]
"""Told the elites' records and all records so far."""


@dataclass(frozen=True)
class Progress:
    """The state of a search, for a display: sent after every recorded candidate and after every generation.

    Args:
        generation, generations: the current one (from 0) and how many there will be.
        done: candidates recorded, infeasible ones and those of an interrupted run included.
        planned: candidates at most.
        duplicates: places that stayed empty so far; `done + duplicates` of `planned` are settled.
        infeasible, failed: of `done`, how many have no score.
        best, best_id: highest score so far and whose it is; None before there is one.
        elites: scores of the `elites` best so far, best first.
        per_second: evaluations per second in this process; None before the first.
        eta: estimated seconds to the end; None before the first evaluation.
        record: the candidate just recorded; None at the end of a generation.
    """

    generation: int
    generations: int
    done: int
    planned: int
    duplicates: int
    infeasible: int
    failed: int
    best: float | None
    best_id: str | None
    elites: tuple[float, ...]
    per_second: float | None
    eta: float | None
    record: Record | None


def run_search(
    strategy: Strategy[C],
    evaluate: Evaluate[C],
    journal: Journal,
    *,
    on_event: Callable[[Progress], None] | None = None,
    on_generation: OnGeneration | None = None,
    facts: Mapping[str, Any] | None = None,
    enough: Callable[[], bool] | None = None,
) -> SearchResult[C]:
    """Run a strategy to its end or its settings' evaluations, or resume it where its journal stops (Algorithm 1).

    The strategy is asked from its beginning; candidates that the journal already holds are not evaluated
    again. So a resumed run's journal equals the undisturbed one's in all but `seconds`.

    Args:
        strategy: at its beginning.
        evaluate: is given the candidates of one generation that are not recorded yet.
        journal: of a new run, or of this run interrupted.
        on_event: called with the progress.
        on_generation: called before every generation with the records of the `elites` best so far, best first (none
            before the first generation), and with all records so far: what racing measures the generation against.
        facts: stand in every record: what all candidates were measured on.
        enough: asked before every candidate once one has a score: whether the search ends here.

    Raises:
        UserError: if the journal is of another run (the line is named), or if every candidate of the first
            generation failed.
    """
    return _Run(strategy, evaluate, journal, on_event, on_generation, facts or {}, enough).run()


class _Unscored(Exception):
    """Ends a replay where the journal does."""


def replayed(
    strategy: Strategy[C],
    journal: Journal,
    facts: Mapping[str, Any] | None = None,
    enough: Callable[[], bool] | None = None,
) -> SearchResult[C] | None:
    """What a search has found, from its journal alone; None while candidates are left to evaluate.

    Args:
        strategy: at its beginning, and of no further use where there is no result.
        journal, facts, enough: as of `run_search`.

    Raises:
        UserError: as `run_search`.
    """

    def evaluate(_: Sequence[C]) -> Iterable[Score]:
        raise _Unscored

    try:
        return run_search(strategy, evaluate, journal, facts=facts, enough=enough)
    except _Unscored:
        return None


@dataclass
class _Run(Generic[C]):
    strategy: Strategy[C]
    evaluate: Evaluate[C]
    journal: Journal
    on_event: Callable[[Progress], None] | None
    on_generation: OnGeneration | None
    facts: Mapping[str, Any]
    enough: Callable[[], bool] | None
    journalled: list[Record] = field(default_factory=list)
    """The journal as it was found; its first `len(records)` lines have been replayed."""
    records: list[Record] = field(default_factory=list)
    candidates: dict[str, C] = field(default_factory=dict)
    top: list[Record] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    """Per generation."""
    settled: Settled | None = None
    waited: float = 0.0
    drawing: float = 0.0
    fresh: int = 0

    def run(self) -> SearchResult[C]:
        started = time.perf_counter()
        self.journalled = self.journal.read()
        while not self._settle() and not self._over() and (batch := self.strategy.ask()) is not None:
            first = len(self.records)
            if self.on_generation is not None:
                self.on_generation(tuple(self.top), tuple(self.records))
            self._score(batch)
            self.duplicates.append(batch.duplicates)
            self._report(batch.generation, None)
            if not self.top:
                raise UserError(self._nothing_scored())
            if len(self.records) - first < len(batch.proposals):
                break
            self.strategy.tell(batch, [_recorded_score(r) for r in self.records[first:]])
        if len(self.journalled) > len(self.records):
            line = len(self.records) + 1
            raise UserError(f"{self.journal.path}: line {line}: this run ends before; {_FOREIGN}")
        if not self.top:
            raise UserError("the strategy proposed no candidate")
        return SearchResult(
            best=self.candidates[self.top[0]["id"]],
            record=self.top[0],
            records=tuple(self.records),
            generations=self._generations(),
            duplicates=sum(self.duplicates),
            seconds=time.perf_counter() - started,
            evaluation_seconds=self.waited,
            settled=self.settled,
        )

    def _over(self) -> bool:
        """Whether there are as many candidates as there may be, or enough of them."""
        if self._full or self.enough is None:
            return self._full
        return bool(self.top) and len(self.records) >= len(self.journalled) and self.enough()

    @property
    def _full(self) -> bool:
        limit = self.strategy.settings.evaluations
        return limit is not None and len(self.records) >= limit

    def _settle(self) -> bool:
        """Whether the last generations found nothing better, though more could follow."""
        if not self.strategy.over and not self._full:
            self.settled = settled(self.records, len(self.duplicates), self.strategy.settings.patience)
        return self.settled is not None

    def _generations(self) -> tuple[Generation, ...]:
        settings = self.strategy.settings
        ratios = {name: self.strategy.space.ratios(c) for name, c in self.candidates.items()}
        populations = generations(
            self.records,
            settings.population,
            settings.elites,
            count=len(self.duplicates),
            ratios=lambda r: ratios[r["id"]],
        )
        # A strategy may have fewer places than its settings say (uniform): its own count is the right one.
        return tuple(replace(g, duplicates=d) for g, d in zip(populations, self.duplicates, strict=True))

    def _score(self, batch: Batch[C]) -> None:
        """Records for every proposal, in order: from the journal, from `evaluate`, or -inf if infeasible."""
        proposals = self._drawn(batch)
        for proposal in islice(proposals, max(0, len(self.journalled) - len(self.records))):
            if self._over():
                return
            self.candidates[proposal.candidate.id] = proposal.candidate
            self._keep(self._replayed(proposal, batch.generation))
        limit = self.strategy.settings.evaluations
        wanted = Ahead(proposals if limit is None else islice(proposals, max(0, limit - len(self.records))))
        with closing(self._awaited(Ahead(p.candidate for p in wanted if p.feasible))) as scores:
            for proposal in wanted:
                if self._over():
                    return
                self.candidates[proposal.candidate.id] = proposal.candidate
                score = next(scores) if proposal.feasible else None
                record = self._record(proposal, score, batch.generation)
                self.journal.append(record)
                self._keep(record)
                self._report(batch.generation, record)
            if next(scores, None) is not None:
                raise RuntimeError("evaluate returned more scores than it was given candidates")

    def _drawn(self, batch: Batch[C]) -> Iterator[Proposal[C]]:
        """The proposals, with the time that drawing them takes, which may be while scores are awaited."""
        proposals = iter(batch.proposals)
        while True:
            clock = time.perf_counter()
            proposal = next(proposals, None)
            self.drawing += time.perf_counter() - clock
            if proposal is None:
                return
            yield proposal

    def _awaited(self, candidates: Sequence[C]) -> Generator[Score]:
        """`evaluate`'s scores, with the time spent on each, but for that of drawing."""
        if not candidates:
            return
        clock = time.perf_counter() - self.drawing
        count = 0
        for score in self.evaluate(candidates):
            elapsed = time.perf_counter() - self.drawing - clock
            self.waited += elapsed
            self.fresh += 1
            count += 1
            yield score if score.seconds is not None else replace(score, seconds=elapsed)
            clock = time.perf_counter() - self.drawing
        if count < len(candidates):
            raise RuntimeError(f"evaluate returned {count} scores for {len(candidates)} candidates")

    def _record(self, proposal: Proposal[C], score: Score | None, generation: int) -> Record:
        """One line of the journal."""
        candidate = proposal.candidate
        if score is None:
            status, score = "infeasible", Score.failed("cannot be repaired into the budget", seconds=0.0)
        else:
            status = "ok" if score.ok else "failed"
        return journal_record(
            candidate,
            score,
            generation=generation,
            params=self.strategy.space.parameters(candidate),
            status=status,
            facts=self.facts,
        )

    def _replayed(self, proposal: Proposal[C], generation: int) -> Record:
        """The journal's record of this proposal, which must be the next one."""
        record = self.journalled[len(self.records)]
        where = f"{self.journal.path}: line {len(self.records) + 1}"
        for key in ("id", "generation", "params", "score", "loss", "status", "seconds"):
            if key not in record:
                raise UserError(f"{where}: no '{key}' in it; {_FOREIGN}")
            optional = key in ("score", "loss")
            if key not in ("id", "status") and not (is_number(record[key]) or (optional and record[key] is None)):
                kind = "a number or null" if optional else "a number"
                raise UserError(f"{where}: '{key}' must be {kind}, found {str(record[key])[:60]!r}")
        if (record["id"], record["generation"]) != (proposal.candidate.id, generation):
            raise UserError(
                f"{where}: candidate {str(record['id'])[:60]} of generation {record['generation']}, where this run has "
                f"{proposal.candidate.id} of generation {generation}; {_FOREIGN}"
            )
        return record

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        if record["score"] is not None:
            ranked = sorted([*self.top, record], key=lambda r: -float(r["score"]))
            self.top = ranked[: self.strategy.settings.elites]

    def _report(self, generation: int, record: Record | None) -> None:
        if self.on_event is None:
            return
        rate = self.fresh / self.waited if self.fresh and self.waited > 0 else None
        left = max(0, self.strategy.planned - len(self.records) - sum(self.duplicates))
        self.on_event(
            Progress(
                generation=generation,
                generations=self.strategy.generations,
                done=len(self.records),
                planned=self.strategy.planned,
                duplicates=sum(self.duplicates),
                infeasible=sum(r["status"] == "infeasible" for r in self.records),
                failed=sum(r["status"] == "failed" for r in self.records),
                best=self.top[0]["score"] if self.top else None,
                best_id=self.top[0]["id"] if self.top else None,
                elites=tuple(float(r["score"]) for r in self.top),
                per_second=rate,
                eta=left / rate if rate else None,
                record=record,
            )
        )

    def _nothing_scored(self) -> str:
        reasons: Sequence[str] = [str(r["reason"]) for r in self.records if r.get("reason")]
        why = f"; the first failed with: {reasons[0]}" if reasons else ""
        return f"none of the first {len(self.records)} candidates could be scored{why}"


def _recorded_score(record: Record) -> float:
    return -math.inf if record["score"] is None else float(record["score"])
