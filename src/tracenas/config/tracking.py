"""Settings of what reports to experiment trackers."""

import importlib.util
from typing import Annotated, ClassVar

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import StageConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["TRACKERS", "TrackedConfig"]

TRACKERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
"""Name → modules, one of which has to be installed."""


class TrackedConfig(StageConfig):
    """Experiment trackers."""

    uses: ClassVar[tuple[Use, ...]] = (Use(("run_name",), "report-to", lambda c: bool(c.report_to)),)

    report_to: Annotated[fields.CommaList, Accepts(("none", *TRACKERS), several=True)] = Field(
        "", description="Where to report, too; what is named has to be installed."
    )
    run_name: str | None = Field(None, description="Name of the run there; default: as its directory is called.")

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers; `none` stands for none.

        Raises:
            UserError: for one that is unknown, or not installed.
        """
        parts = (part.strip() for part in self.report_to.split(","))
        names = tuple(dict.fromkeys(part for part in parts if part not in ("", "none")))
        for name in names:
            if name not in TRACKERS:
                raise UserError(f"report-to '{name}': accepted: {', '.join(TRACKERS)}")
            if not any(importlib.util.find_spec(module) for module in TRACKERS[name]):
                raise UserError(f"report-to '{name}': not installed: pip install {TRACKERS[name][0]}")
        return names
