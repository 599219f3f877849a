"""Which of a search's best candidates is taken: held-out text decides between those that its own cannot.

The best of many on one text is flattered by it. So the best candidate and those of the next that are no worse than it
beyond the noise (`Z` standard errors of the paired difference, sequence by sequence) are measured on text that no
candidate was scored on, and the best there is taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tracenas.errors import UserError
from tracenas.strategies.score import is_number
from tracenas.strategies.settled import Z, paired_error

__all__ = ["CONTENDERS", "WINDOWS", "Contender", "Decision", "Prefer", "contenders", "selected", "trials_from_json"]

CONTENDERS, WINDOWS = 4, 8
"""Candidates that are compared on held-out text, and sequences of it, at most."""

Prefer = Literal["loss", "stock"]


@dataclass(frozen=True)
class Contender:
    """A candidate on held-out text.

    Args:
        id: its name in the journal.
        terms: the proxy's term of every held-out sequence, of which the score is minus the mean; infinite where it
            could not be measured.
        stock: whether it is stock-shaped; None: nobody asked.
    """

    id: str
    terms: tuple[float, ...]
    stock: bool | None = None

    @property
    def mean(self) -> float:
        """Of the terms."""
        return math.fsum(self.terms) / len(self.terms)

    @property
    def measured(self) -> bool:
        """Whether it has a mean."""
        return math.isfinite(self.mean)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; null for what could not be measured."""
        stock = {} if self.stock is None else {"stock": self.stock}
        return {"id": self.id, "terms": [t if math.isfinite(t) else None for t in self.terms], **stock}

    @classmethod
    def from_json(cls, data: Any, *, where: str) -> "Contender":
        """`to_json`'s object.

        Raises:
            UserError: for anything else.
        """
        fields = data if isinstance(data, Mapping) else {}
        name, terms, stock = (fields.get(key) for key in ("id", "terms", "stock"))
        if not isinstance(name, str) or not isinstance(terms, list) or not terms or stock not in (None, True, False):
            raise UserError(f"{where}: expected a candidate's 'id' and its 'terms', found {str(data)[:60]!r}")
        if not all(t is None or is_number(t) for t in terms):
            raise UserError(f"{where}: 'terms' must be numbers, found {str(terms)[:60]!r}")
        return cls(name, tuple(math.inf if t is None else float(t) for t in terms), stock)


@dataclass(frozen=True)
class Decision:
    """What was taken, and why.

    Args:
        chosen: the candidate that is taken.
        searched: the one with the best score.
        trials: on held-out text, by score.
        said: in a sentence.
    """

    chosen: Contender
    searched: Contender
    trials: tuple[Contender, ...]
    said: str

    def to_json(self) -> dict[str, Any]:
        """For best.json and summary.json: every candidate's mean, and its paired difference from the search's best."""
        rows = []
        for trial in self.trials:
            row: dict[str, Any] = {"id": trial.id, **({} if trial.stock is None else {"stock": trial.stock})}
            if trial.measured:
                row["mean"] = trial.mean
                if self.searched.measured:
                    row["difference"], row["error"] = _paired(trial, self.searched)
            rows.append(row)
        return {"chosen": self.chosen.id, "searched": self.searched.id, "contenders": rows, "said": self.said}


def trials_from_json(data: Any, *, where: str) -> list[Contender]:
    """The object with `trials`, as a run keeps it.

    Raises:
        UserError: for anything else.
    """
    found = data.get("trials") if isinstance(data, Mapping) else None
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: expected an object with a list of 'trials', found {str(data)[:60]!r}")
    return [Contender.from_json(trial, where=where) for trial in found]


def contenders(records: Sequence[Mapping[str, Any]], elites: int) -> list[Mapping[str, Any]]:
    """The best candidate and those that its search's text cannot tell from it: records, best first.

    Args:
        records: the journal.
        elites: how many the search carries over; no more are compared, nor more than `CONTENDERS`.
    """
    measured = [r for r in records if r["score"] is not None and "stopped" not in r]
    ranked = sorted(measured, key=lambda r: -float(r["score"]))[: min(elites, CONTENDERS)]
    return [r for r in ranked if r is ranked[0] or _near(r, ranked[0])]


def _near(record: Mapping[str, Any], best: Mapping[str, Any]) -> bool:
    error = paired_error(record.get("terms"), best.get("terms"))
    return error is None or float(best["score"]) - float(record["score"]) <= Z * error


def selected(trials: Sequence[Contender], prefer: Prefer) -> Decision:
    """What is taken: the best on held-out text, or a stock-shaped one that is no worse beyond the noise.

    Args:
        trials: by score, best first; the first has the best of all.
        prefer: `loss`, or `stock`.
    """
    best = min(trials, key=lambda t: t.mean)
    count = f"{len(trials)} candidates" if len(trials) > 1 else "1 candidate"
    what = f"of {count} on held-out text, the search's best is the best"
    if not trials[0].measured:
        what = f"of {count} on held-out text, the search's best could not be measured there"
    elif best.id != trials[0].id:
        gap, error = _paired(trials[0], best)
        what = f"of {count} on held-out text, the best is another than the search's, by {gap:.2g} ± {error:.2g}"
    if prefer == "loss" or best.stock:
        return Decision(best, trials[0], tuple(trials), what)
    stock = min((t for t in trials if t.stock and t.measured), key=lambda t: t.mean, default=None)
    if stock is None:
        return Decision(best, trials[0], tuple(trials), f"{what}; no stock-shaped candidate was measured")
    gap, error = _paired(stock, best)
    worse = f"the best stock-shaped candidate is worse by {gap:.2g} ± {error:.2g} on held-out text"
    if not gap <= Z * error:
        return Decision(best, trials[0], tuple(trials), f"{worse}: more than the noise, so it is not taken")
    return Decision(stock, trials[0], tuple(trials), f"{worse}: within the noise, so it is taken")


def _paired(one: Contender, other: Contender) -> tuple[float, float]:
    """Mean difference of the terms, and its standard error (0 of a single sequence)."""
    if one.id == other.id:
        return 0.0, 0.0
    return one.mean - other.mean, paired_error(one.terms, other.terms) or 0.0
