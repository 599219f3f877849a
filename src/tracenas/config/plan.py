"""Settings of plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from tracenas.config import fields
from tracenas.config.effort import EffortConfig
from tracenas.config.front import SizesConfig
from tracenas.config.run import RunConfig, checked_section
from tracenas.config.shared import StageConfig, TracedConfig
from tracenas.config.usage import TRACED, Use

__all__ = ["PlanConfig"]


class PlanConfig(EffortConfig, SizesConfig, TracedConfig):
    """Feasible budgets, memory and time, before any work."""

    needed = ("params", "budget")
    wanted = ("effort", "minutes", "deploy", "sensitivity", "no_timing", "device")
    without = ("seed", "trust_remote_code")
    sections: ClassVar[Mapping[str, type[StageConfig]]] = RunConfig.sections
    reads = ("run", "search", "recover")
    uses = (
        TRACED,
        Use(("tolerance", "sensitivity"), "params or budget", lambda c: bool(c.budgets)),
        Use(("threads", "minutes"), "the estimate of time", lambda c: not c.no_timing),
        Use(("windows", "text_field", "random_architectures"), "text", lambda c: c.text is not None),
        Use(("recover_rivals",), "the section recover", lambda c: c.recover is not None),
    )

    keeps_latency = True

    model: fields.ModelName
    params: fields.Size | None = Field(
        None,
        description="Budget for all parameters: a share such as 60%, or a number such as 2.7B; default: "
        "what is feasible.",
    )
    proxy: fields.Proxy = "auto"
    sensitivity: Path | None = Field(
        None, description="Table that `tracenas sensitivity` wrote: says what the budget is predicted to cost."
    )
    prune: dict[str, Any] | None = Field(
        None, description="Settings of prune, of which scales, reconstruct and its steps take time that is told."
    )
    recover: dict[str, Any] | None = Field(
        None, description="Settings of recover, whose time and memory are told, too: tokens or max_steps and others."
    )
    text: fields.Text | None = Field(
        None, description="Held-out text of a run, whose comparison and evaluation are timed, too."
    )
    windows: int | None = Field(None, ge=1, description="Number of held-out windows at most; default: all.")
    text_field: fields.TextField = None
    random_architectures: int = Field(
        3, ge=0, description="Number of random architectures of the same budget that a run compares with."
    )
    recover_rivals: bool = Field(
        False, description="Whether the run recovers the uniform and a random architecture, too."
    )
    eval: dict[str, Any] | None = Field(
        None, description="Settings of eval, whose time is told, too, such as tasks or suite."
    )
    bench: dict[str, Any] | None = Field(
        None, description="Settings of bench, whose time is told, too, for backend torch."
    )
    no_timing: bool = Field(
        False, description="Leave out the estimate of time, for which the speed of this machine is measured."
    )

    @model_validator(mode="before")
    @classmethod
    def _check_sections(cls, values: Any) -> Any:
        given = {name: values[name] for name in cls.sections if values.get(name) is not None}
        return {**values, **{name: checked_section(name, section, "best") for name, section in given.items()}}

    @model_validator(mode="after")
    def _check_front(self) -> Self:
        if any(getattr(self, name) is not None for name in self.sections):
            self.require_sizes()
        return self
