"""Settings of run: those of a search, and a section for every further stage that is asked for."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from tracenas.config import fields
from tracenas.config.front import SizesConfig
from tracenas.config.measuring import BenchConfig, EvalConfig
from tracenas.config.pruning import PruneConfig, SearchConfig
from tracenas.config.recovery import RecoverConfig
from tracenas.config.shared import StageConfig, build, current_names, setting_names
from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["RunConfig", "checked_section"]


class _RunRecovery(RecoverConfig):
    """What `recover:` takes."""

    processes: int = Field(
        1, ge=1, description="Number of processes that train, one per GPU; several are started by torchrun."
    )


_KINDS: dict[str, type[StageConfig]] = {
    "prune": PruneConfig,
    "recover": _RunRecovery,
    "eval": EvalConfig,
    "bench": BenchConfig,
}
_FROM_RUN = ("model", "models", "arch", "out", "resume", "trust_remote_code")
_OF_PRUNE = (
    *("data", "compensate_samples", "ridge", "reconstruct", "reconstruct_steps", "reconstruct_rate"),
    "scales",
    *("shard_size", "save_dtype", "stub_removed_attention"),
)
_STAND_INS: dict[str, dict[str, Any]] = {
    "prune": {"model": "-", "arch": "-", "out": "-", "data": "-"},
    "recover": {"model": "-", "data": "-", "out": "-", "text": "-"},
    "eval": {"models": ("-",), "text": "-"},
    "bench": {"models": ("-",)},
}


class RunConfig(SearchConfig, SizesConfig):
    """Search, prune, compare and report, then recover, evaluate and time where a section asks for it."""

    wanted = ("effort", "minutes", "deploy", "compensate", "windows", "resume")
    sections: ClassVar[Mapping[str, type[StageConfig]]] = _KINDS

    text: fields.Text = Field(description="Held-out text that perplexities are measured on.")
    windows: int | None = Field(None, ge=1, description="Number of held-out windows at most; default: all.")
    random_architectures: int = Field(
        3, ge=0, description="Number of random architectures of the same budget to compare with."
    )
    compensate: fields.Compensate = Field(
        "best",
        description="How the checkpoint's output projections are refitted, as in `tracenas prune`; auto: as it was "
        "scored.",
    )
    recover_rivals: bool = Field(
        False, description="Recover the uniform and the first random architecture, too, in the same way."
    )
    prune: dict[str, Any] | None = Field(
        None, description="Settings of `tracenas prune`: " + ", ".join(_OF_PRUNE) + "."
    )
    recover: dict[str, Any] | None = Field(
        None, description="Recover the pruned model, with these settings of `tracenas recover`."
    )
    eval: dict[str, Any] | None = Field(
        None, description="Evaluate base and checkpoints, with these settings of `tracenas eval`."
    )
    bench: dict[str, Any] | None = Field(
        None, description="Time base and checkpoints, with these settings of `tracenas bench`."
    )

    @model_validator(mode="after")
    def _check_front(self) -> Self:
        self.require_sizes()
        return self

    @model_validator(mode="before")
    @classmethod
    def _check_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        compensate = values.get("compensate") or cls.model_fields["compensate"].default
        checked = {
            name: checked_section(name, values[name], compensate) for name in _KINDS if values.get(name) is not None
        }
        if values.get("recover_rivals") in (True, "true") and "recover" not in checked:
            raise UserError("recover_rivals needs the section recover: there is no recovery to repeat")
        return {**values, **checked}


def checked_section(name: str, values: object, compensate: str) -> dict[str, Any]:
    """The section's own settings, checked and converted by the stage's model."""
    if not isinstance(values, Mapping):
        raise UserError(f"{name} '{values}': expected settings of its stage, such as {name}.KEY=VALUE")
    kind, section = _KINDS[name], current_names(_KINDS[name], values)
    accepted = _OF_PRUNE if name == "prune" else tuple(key for key in setting_names(kind) if key not in _FROM_RUN)
    for key in section:
        if key in accepted:
            continue
        if key in kind.model_fields:
            raise UserError(f"{name}.{key}: is the run's to set; leave it out of the section")
        raise UserError(f"{name}.{key}: unknown setting: {did_you_mean(key, list(accepted))}")
    if section.get("method") == "lora" and "data" not in section:
        raise UserError("recover.data is required for lora: prompts and responses, or chats")
    try:
        outer = {"compensate": compensate} if name == "prune" else {}
        settings = build(kind, {**_STAND_INS[name], **outer, **section}, inherited=section)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return {key: getattr(settings, key) for key in section}
