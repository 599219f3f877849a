"""What every command takes, and how settings are built and refused."""

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from tracenas.dtypes import short_name
from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["CalibrationConfig", "Dtype", "SpaceConfig", "StageConfig", "build", "parse_rank"]

C = TypeVar("C", bound="StageConfig")

Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    BeforeValidator(lambda value: short_name(value) if isinstance(value, str) else value),
]
"""A dtype's name, ours or torch's; kept as ours."""


class StageConfig(BaseModel):
    """What every command takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True)

    sections: ClassVar[tuple[str, ...]] = ()
    """Fields that hold another stage's settings: `recover.max_steps=100`, or a mapping in YAML."""

    seed: int = Field(0, ge=0, description="Seed of everything random in this command.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Dtype = Field(
        "auto",
        description="Of computation: fp32, bf16 or fp16 (or torch's names); auto: bf16 on CUDA, fp32 on the CPU.",
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of torch; default: torch's own choice, recorded.")
    trust_remote_code: bool = Field(False, description="Run code that a model repository ships.")


class SpaceConfig(StageConfig):
    """What may be removed."""

    depth_granularity: Literal["block", "sublayer"] = Field(
        "block", description="Skip whole blocks, or attention and MLP separately."
    )
    min_depth: int | None = Field(None, ge=1, description="Blocks that must stay; default: half of them.")
    keep_layers: str = Field("", description="Blocks that may not be skipped, such as 0,-1.")
    channel_quantum: int = Field(32, ge=1, description="MLP widths are multiples of it, or the base's own.")
    head_quantum: int = Field(1, ge=1, description="Query-head counts are multiples of it, or the base's own.")
    deploy: str = Field(
        "", description="What serves the result: gguf, vllm-stock, tensor-parallel:N, or several with commas."
    )
    kv_groups: bool = Field(False, description="Remove whole KV groups instead of query heads within each group.")

    @field_validator("keep_layers", mode="before")
    @classmethod
    def _join(cls, value: Any) -> Any:
        return ",".join(str(v) for v in value) if isinstance(value, (list, tuple)) else str(value)

    @property
    def protected(self) -> tuple[int, ...]:
        """`keep_layers` as numbers."""
        try:
            return tuple(int(part) for part in self.keep_layers.replace(" ", "").split(",") if part)
        except ValueError as error:
            raise UserError(
                f"keep-layers '{self.keep_layers}': expected numbers separated by commas, such as 0,-1"
            ) from error


class CalibrationConfig(SpaceConfig):
    """The text that candidates are measured on."""

    samples: int | None = Field(None, ge=1, description="Calibration sequences; default 16, or all of a token file.")
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default min(4096, the model's positions)."
    )
    text_field: str | None = Field(None, description="Field of JSONL, CSV, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(
        None, ge=1, description="Sequences per pass; default: up to 4,096 tokens, on a CPU up to 1 GiB of activations."
    )
    saliency: str = Field("wanda", description="What units are ranked by.")
    compensate_samples: int | None = Field(
        None,
        ge=1,
        description="Sequences that compensation is fitted on, other text than the calibration's; default 48, or fewer "
        "where there is no more text.",
    )
    ridge: float | None = Field(
        None,
        gt=0,
        description="Strength of compensation's ridge, relative to the mean diagonal of the Gram matrix; default 0.01 "
        "in scores, chosen on held-out text by prune.",
    )


def parse_rank(text: str) -> int:
    """`full` → 0; a positive number otherwise."""
    if text == "full":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"rank '{text}': accepted: full, or a number from 1 up")
    return int(text)


def build(kind: type[C], values: dict[str, Any]) -> C:
    """A stage's configuration, with one clear line for what is wrong.

    Raises:
        UserError: for unknown keys (with a suggestion), missing or unacceptable values.
    """
    known = list(kind.model_fields)
    for key in values:
        if key not in known:
            raise UserError(f"unknown setting '{key}': {did_you_mean(key, known)}")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "missing":
            field = kind.model_fields[name]
            raise UserError(f"'{name}' is required: {field.description}") from error
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{name} '{first['input']}': {message[0].lower()}{message[1:]}") from error
