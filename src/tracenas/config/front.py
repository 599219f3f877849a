"""Settings of a front: what all sizes are searched of, and the sizes that checkpoints are written at."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from tracenas.budgets import BUDGETS
from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.budgets import BudgetConfig
from tracenas.config.shared import StageConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["FrontConfig", "SizesConfig"]

_MOST_COSTS = 3
"""Of a front."""


class FrontConfig(BudgetConfig):
    """The front of all sizes."""

    former: ClassVar[Mapping[str, str]] = {**StageConfig.former, "from": "smallest"}
    uses: ClassVar[tuple[Use, ...]] = (Use(("costs", "smallest"), "front", lambda c: c.front),)

    front: bool = Field(
        False,
        description="Search all sizes at once, from smallest to the budget: every size's best is in the journal, and "
        "`tracenas best` says which.",
    )
    costs: Annotated[fields.CommaList, Accepts(registered=BUDGETS.names, several=True)] = Field(
        "params",
        description="What the front is of beside the score: one to three costs; the upper end of each is its budget, "
        "or 95%.",
    )
    smallest: fields.Size = Field("50%", description="Lower end of the front's first cost, as a budget is given.")

    @property
    def budgets(self) -> dict[str, str]:
        """By name; with `front` its costs come first, and are 95% where nothing is said."""
        found = super().budgets
        return {**{name: found.get(name, "95%") for name in self.front_costs}, **found}

    @property
    def front_costs(self) -> tuple[str, ...]:
        """What the front is of beside the score; nothing without one.

        Raises:
            UserError: for unknown costs, more than three, and one that is named twice.
        """
        if not self.front:
            return ()
        names = tuple(name.strip() for name in self.costs.split(",") if name.strip())
        if not 1 <= len(set(names)) == len(names) <= _MOST_COSTS:
            raise UserError(f"costs '{self.costs}': expected one to three different budgets, such as params,decode_ms")
        for name in names:
            BUDGETS.check(name)
        return names

    @property
    def leading(self) -> str | None:
        """What the lower end of a front is of."""
        return next(iter(self.front_costs), None)


class SizesConfig(FrontConfig):
    """Checkpoints of a front."""

    uses: ClassVar[tuple[Use, ...]] = (
        Use(("checkpoints",), "front", lambda c: c.front),
        Use(("random_architectures", "recover_rivals"), "a run of one size, without front", lambda c: not c.front),
    )

    checkpoints: Annotated[fields.CommaList | None, Accepts(metavar="SIZE", several=True)] = Field(
        None,
        description="With front: the sizes that checkpoints are written and measured at, in its first cost, such as "
        "60%,75%.",
    )

    @property
    def sizes_of_checkpoints(self) -> tuple[str, ...]:
        """`checkpoints`, one by one.

        Raises:
            UserError: for one that is named twice.
        """
        sizes = tuple(size.strip() for size in (self.checkpoints or "").split(",") if size.strip())
        if len(set(sizes)) < len(sizes):
            raise UserError(f"checkpoints '{self.checkpoints}': a size is named twice")
        return sizes

    def require_sizes(self) -> None:
        """Refuse a front without sizes.

        Raises:
            UserError: saying what is missing.
        """
        if self.front and not self.sizes_of_checkpoints:
            raise UserError("'checkpoints' is required with front: the sizes that are written, such as 60%,75%")
