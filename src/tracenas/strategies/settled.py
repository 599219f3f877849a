"""When a search has come to its end: its last generations found nothing that is better beyond the noise.

What is compared is the best candidate of all and the best of those before the last `patience` generations, sequence by
sequence on the same text: the mean difference must be more than `Z` of its standard errors. Scores that are no means
over sequences have no standard error; there any gain counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Settled", "Z", "paired_error", "settled"]

Z = 2.0
"""Standard errors of the paired difference that a gain must be more than."""


@dataclass(frozen=True)
class Settled:
    """That a search ended before its evaluations did.

    Args:
        generations: the last ones, in which nothing better was found.
        gain: of the best candidate over the best before them, in the score's unit; 0: it is the same one.
        error: standard error of the gain; None where scores are no means over sequences.
    """

    generations: int
    gain: float
    error: float | None

    def __str__(self) -> str:
        last = f"the last {self.generations} generations" if self.generations > 1 else "the last generation"
        if self.gain == 0:
            return f"{last} found nothing better"
        return f"{last} found nothing better beyond the noise ({self.gain:.2g} ± {self.error or 0.0:.2g})"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, with the sentence as `said`."""
        return {**asdict(self), "said": str(self)}


def settled(records: Sequence[Mapping[str, Any]], generations: int, patience: int | None) -> Settled | None:
    """What ends a search here; None while it goes on.

    Args:
        records: of all candidates.
        generations: how many there were.
        patience: generations in a row without gain; None or 0: any number.
    """
    scored = [r for r in records if r["score"] is not None]
    if not patience or not scored:
        return None
    earlier = [r for r in scored if r["generation"] < generations - patience]
    if not earlier:
        return None
    best, before = (max(some, key=lambda r: float(r["score"])) for some in (scored, earlier))
    gain = float(best["score"]) - float(before["score"])
    error = paired_error(best.get("terms"), before.get("terms"))
    return Settled(patience, gain, error) if gain <= Z * (error or 0.0) else None


def paired_error(terms: Sequence[float] | None, others: Sequence[float] | None) -> float | None:
    """Standard error of the mean difference of two candidates' terms; None where they have none, or a single one."""
    if not terms or not others or len(terms) != len(others) or len(terms) < 2:
        return None
    difference = np.asarray(terms, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))
