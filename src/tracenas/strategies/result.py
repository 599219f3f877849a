"""What a search found, and its populations as they can be rebuilt from the journal's records."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from tracenas.strategies.protocol import Candidate
from tracenas.strategies.score import Score, jsonable
from tracenas.strategies.settled import Settled

__all__ = ["Generation", "Record", "SearchResult", "generations", "journal_record"]

C = TypeVar("C", bound=Candidate)
Record = dict[str, Any]
"""One line of the journal: `id, generation, arch, params, score, loss, seconds, status, reason?` and what the
evaluator adds. `status` is `ok`, `failed` or `infeasible`; `score` is null unless it is `ok`."""


def journal_record(
    candidate: Candidate, score: Score, *, generation: int, params: int, status: str, facts: Mapping[str, Any]
) -> Record:
    """One line of the journal.

    Args:
        facts: what all lines of a run say.
    """
    plain: Record = jsonable(
        {
            "id": candidate.id,
            "generation": generation,
            "arch": candidate.to_json(),
            "params": params,
            "score": score.score if score.ok else None,
            "loss": score.loss,
            "seconds": round(score.seconds or 0.0, 6),
            "status": status,
            **({"reason": score.reason} if score.reason else {}),
            **score.extra,
            **facts,
        }
    )
    return plain


@dataclass(frozen=True)
class Generation:
    """One population: the elites carried over, then the generation's own candidates.

    Args:
        generation: 0 is the initial population.
        population: ids; elites carried over (best first), then new candidates in the journal's order.
        elites: ids of the best, best first; the parents of the next generation.
        new: candidates recorded in this generation.
        duplicates: places left empty because every redraw had been seen before.
        infeasible, failed: new candidates that could not be repaired, or not be scored.
        best, mean_elites, mean: scores; None where nothing has one.
        variance: population variance of the scores.
        width_variance: variance of the retention ratios over the population, averaged over the sub-blocks
            (TraceNAS Fig. 4d); None if no ratios were given.
    """

    generation: int
    population: tuple[str, ...]
    elites: tuple[str, ...]
    new: int
    duplicates: int
    infeasible: int
    failed: int
    best: float | None
    mean_elites: float | None
    mean: float | None
    variance: float | None
    width_variance: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, for a run's summary."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class SearchResult(Generic[C]):
    """The outcome of `run_search`.

    Args:
        best: the candidate with the highest score; the earlier one on a tie.
        record: its journal record.
        records: all records, in the journal's order.
        generations: the populations and their statistics.
        duplicates: places that stayed empty in all generations.
        seconds: wall time of this process's part of the search.
        evaluation_seconds: of that, the time spent waiting for evaluations.
        settled: why it ended before its evaluations did; None where it did not.
    """

    best: C
    record: Record
    records: tuple[Record, ...]
    generations: tuple[Generation, ...]
    duplicates: int
    seconds: float
    evaluation_seconds: float
    settled: Settled | None = None

    @property
    def score(self) -> float:
        """The best candidate's score."""
        return float(self.record["score"])

    @property
    def evaluated(self) -> int:
        """Candidates that were evaluated (in this process or before), failed ones included."""
        return sum(r["status"] != "infeasible" for r in self.records)


def generations(
    records: Sequence[Mapping[str, Any]],
    population: int,
    elites: int,
    *,
    count: int | None = None,
    ratios: Callable[[Mapping[str, Any]], Sequence[Sequence[float]]] | None = None,
) -> list[Generation]:
    """The populations of a run from its journal alone (elites are recomputed).

    An unfinished last generation counts the candidates that are still to come as duplicates.

    Args:
        records: the journal, in order.
        population, elites: the run's settings.
        count: how many generations there were; by default up to the last one that has a record.
        ratios: retention ratios of a record's architecture, for the variance of the widths.
    """
    members: list[Mapping[str, Any]] = []
    out: list[Generation] = []
    last = max((r["generation"] for r in records), default=-1)
    for generation in range(last + 1 if count is None else count):
        new = [r for r in records if r["generation"] == generation]
        carried = [r["id"] for r in members]
        places = population if generation == 0 else population - elites
        everyone = [*members, *new]
        members = _best(everyone, elites)
        scores = np.array([r["score"] for r in everyone if r["score"] is not None], dtype=np.float64)
        kept = [r["score"] for r in members]
        out.append(
            Generation(
                generation=generation,
                population=(*carried, *(r["id"] for r in new)),
                elites=tuple(r["id"] for r in members),
                new=len(new),
                duplicates=places - len(new),
                infeasible=sum(r["status"] == "infeasible" for r in new),
                failed=sum(r["status"] == "failed" for r in new),
                best=kept[0] if kept else None,
                mean_elites=float(np.mean(kept)) if kept else None,
                mean=float(scores.mean()) if scores.size else None,
                variance=float(scores.var()) if scores.size else None,
                width_variance=None if ratios is None else _width_variance([ratios(r) for r in everyone]),
            )
        )
    return out


def _best(records: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """The `count` best scored records, best first; the earlier one on a tie."""
    return sorted((r for r in records if r["score"] is not None), key=lambda r: -r["score"])[:count]


def _width_variance(population: Sequence[Sequence[Sequence[float]]]) -> float | None:
    if not population:
        return None
    widths = np.array([[r for row in member for r in row] for member in population], dtype=np.float64)
    return float(widths.var(axis=0).mean())
