"""What an evaluation says about a candidate, and how it is written into a journal."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

__all__ = ["RESERVED", "Score", "is_number", "jsonable"]

RESERVED = ("id", "generation", "arch", "params", "score", "loss", "seconds", "status", "reason")
"""Keys of a journal record that an evaluator's extra fields may not take."""


@dataclass(frozen=True)
class Score:
    """Result of one evaluation.

    Args:
        score: what the search maximises (Φ, or a rival proxy). NaN and infinities mean that the candidate
            failed: they become -inf, as Algorithm 1 scores what it cannot use.
        loss: calibration loss of the candidate in nats per token; None if unknown or not finite.
        seconds: wall time of the evaluation; None lets the search loop measure it.
        extra: further fields of the journal record (`rho`, …), JSON; they may not use a name of `RESERVED`.
        reason: why it failed, or what was odd about it.
    """

    score: float
    loss: float | None = None
    seconds: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    def __post_init__(self) -> None:
        taken = [key for key in self.extra if key in RESERVED]
        if taken:
            raise ValueError(f"extra field '{taken[0]}' is one of the journal's own: {', '.join(RESERVED)}")
        score = float(self.score)
        if not math.isfinite(score):
            object.__setattr__(self, "reason", self.reason or "the score is not finite")
            score = -math.inf
        object.__setattr__(self, "score", score)
        if self.loss is not None:
            object.__setattr__(self, "loss", float(self.loss) if math.isfinite(self.loss) else None)

    @classmethod
    def failed(cls, reason: str, *, seconds: float | None = None) -> "Score":
        """A candidate that could not be scored."""
        return cls(-math.inf, seconds=seconds, reason=reason)

    @property
    def ok(self) -> bool:
        """Whether there is a score."""
        return math.isfinite(self.score)


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value read from JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def jsonable(value: Any) -> Any:
    """Plain JSON of a value: NumPy scalars and arrays as numbers and lists, non-finite numbers as null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
