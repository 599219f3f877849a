"""Settings of plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from tracenas.config import fields
from tracenas.config.effort import EffortConfig
from tracenas.config.run import RunConfig, checked_section
from tracenas.config.shared import SpaceConfig, StageConfig, TracedConfig
from tracenas.config.usage import TRACED, Use

__all__ = ["PlanConfig"]


class PlanConfig(EffortConfig, SpaceConfig, TracedConfig):
    """Feasible budgets, memory and time, before any work."""

    needed = ("params",)
    wanted = ("effort", "minutes", "deploy", "sensitivity", "no_timing", "device")
    without = ("seed", "trust_remote_code")
    sections: ClassVar[Mapping[str, type[StageConfig]]] = {"recover": RunConfig.sections["recover"]}
    reads = ("run", "search", "recover")
    uses = (
        TRACED,
        Use(("tolerance", "sensitivity"), "params", lambda c: c.params is not None),
        Use(("threads", "minutes"), "the estimate of time", lambda c: not c.no_timing),
    )

    model: fields.ModelName
    params: fields.Size | None = Field(
        None,
        description="Budget for all parameters: a share such as 60%, or a number such as 2.7B; default: "
        "what is feasible.",
    )
    tolerance: fields.Tolerance = 0.01
    proxy: fields.Proxy = "auto"
    sensitivity: Path | None = Field(
        None, description="Table that `tracenas sensitivity` wrote: says what the budget is predicted to cost."
    )
    recover: dict[str, Any] | None = Field(
        None, description="Settings of recover, whose time and memory are told, too: tokens or max_steps and others."
    )
    no_timing: bool = Field(
        False, description="Leave out the estimate of time, for which the speed of this machine is measured."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_recover(cls, values: Any) -> Any:
        given = values.get("recover")
        if given is None:
            return values
        return {**values, "recover": checked_section("recover", given, "best")}
