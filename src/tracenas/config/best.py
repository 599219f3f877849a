"""Settings of best."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from tracenas.config.budgets import BudgetConfig
from tracenas.config.shared import SpaceConfig, StageConfig

__all__ = ["BestConfig"]


class BestConfig(BudgetConfig):
    """The best measured candidate of a run under any budgets."""

    needed = ("params", "budget")
    wanted = ("evaluations", "out")
    without: ClassVar[tuple[str, ...]] = (*SpaceConfig.model_fields, *StageConfig.model_fields, "tolerance")

    keeps_latency = True

    run: Path = Field(description="The run of a search: its directory.")
    params: str | None = Field(
        None, description="Budget for all parameters: a share of the model's such as 62%, or a number such as 2.7B."
    )
    evaluations: int = Field(
        0, ge=0, description="Number of candidates to measure on top, proposed by what the run knows; 0: none."
    )
    out: Path | None = Field(
        None, description="File to write the architecture to, as `tracenas prune --arch` takes it, wherever it lies."
    )

    @property
    def says_all(self) -> bool:
        """Always."""
        return True
