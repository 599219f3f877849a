"""How much a search does: an effort, a number of evaluations or minutes stand for its sizes and for its text."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from tracenas.config.shared import StageConfig
from tracenas.errors import UserError

__all__ = ["EFFORTS", "SIZES", "Effort", "EffortConfig"]

SIZES = ("effort", "minutes", "evaluations", "population", "elites", "iterations")
"""What a search's size is told by."""

_WIDE, _NARROW = 30, 12
"""Candidates per generation: of the paper's evolution, and where there are too few for several such generations."""
_ENOUGH_FOR_WIDE = 120


@dataclass(frozen=True)
class Effort:
    """A search's size.

    Args:
        evaluations: candidates at most.
        samples, seq_len: sequences that candidates are measured on, and their tokens at most.
    """

    evaluations: int
    samples: int = 8
    seq_len: int = 512

    def population(self, given: int | None) -> int:
        """Candidates per generation."""
        wide = self.evaluations >= _ENOUGH_FOR_WIDE
        return given or max(2, min(_WIDE if wide else _NARROW, self.evaluations))


EFFORTS = {"quick": Effort(60, 4), "normal": Effort(210), "thorough": Effort(1010, 16, 2048)}


class EffortConfig(StageConfig):
    """Sizes of a search."""

    effort: Literal["quick", "normal", "thorough"] | None = Field(
        None,
        description="How much the search does: quick (60 candidates on 4 × 512 tokens), normal (210 on 8 × 512; the "
        "default) or thorough (1,010 on 16 × 2,048).",
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="How long the search may take, in minutes: text per candidate is chosen by what this machine "
        "manages, and candidates are measured until the time is up.",
    )
    evaluations: int | None = Field(None, ge=2, description="Number of candidates that the search measures at most.")
    population: int | None = Field(
        None, ge=2, description="Number of candidates per generation; default: 30, or 12 where there are less than 120."
    )
    elites: int | None = Field(
        None,
        ge=1,
        description="Number of candidates carried over, the parents of the next generation; default: a third.",
    )
    iterations: int | None = Field(
        None,
        ge=1,
        description="Number of generations, the initial one included; default: as many as the evaluations fill.",
    )

    samples: int | None = Field(
        None, ge=1, description="Number of calibration sequences; default: what the effort has, or all of a token file."
    )
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per calibration sequence; default: what the effort has, if the model allows it."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_effort(cls, values: Any) -> Any:
        given = [name for name in ("effort", "minutes", "evaluations") if values.get(name) is not None]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} are two answers to one question; give one of them")
        return values

    @property
    def size(self) -> Effort:
        """What is not given by itself follows from this."""
        if self.evaluations is not None:
            return Effort(self.evaluations)
        return EFFORTS[self.effort or "normal"]

    def sizes(self, size: Effort) -> dict[str, int]:
        """`population`, `elites` and `iterations`, where they are given as they are."""
        population = size.population(self.population)
        elites = self.elites or max(1, population // 3)
        generations = 1 + max(0, math.ceil((size.evaluations - population) / max(1, population - elites)))
        return {"population": population, "elites": elites, "iterations": self.iterations or generations}
