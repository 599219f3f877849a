"""What every command takes, and how settings are built and refused."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from tracenas.config import fields
from tracenas.config.accepted import Accepts, choices
from tracenas.config.usage import ROWS, Use, applies, reads_widths, refits
from tracenas.errors import UserError
from tracenas.registry import did_you_mean
from tracenas.saliency import PLAIN, PREDICTED_RISES, SALIENCIES
from tracenas.saliency.methods import LONGEST
from tracenas.space.deploy import PRESETS

__all__ = [
    "CalibrationConfig",
    "SpaceConfig",
    "StageConfig",
    "TracedConfig",
    "WindowsConfig",
    "build",
    "check_used",
    "construct",
    "current_names",
    "parse_rank",
    "positional_setting",
    "setting_names",
]

C = TypeVar("C", bound="StageConfig")
_LARGEST = 2**31 - 1
"""That torch and the system count threads and rows up to."""
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]+)?", re.ASCII)


class StageConfig(BaseModel):
    """Machine and randomness."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), coerce_numbers_to_str=True, allow_inf_nan=False
    )

    sections: ClassVar[Mapping[str, type["StageConfig"]]] = {}
    """Fields that hold another stage's settings: `recover.max_steps=100`, or a mapping in YAML."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Commands whose settings files this one takes, too: what it does not have of theirs is left."""

    behind: ClassVar[str] = ""
    """The setting that may stand without an option name behind the first required one."""

    former: ClassVar[Mapping[str, str]] = {"eval_text": "text", "eval_windows": "windows", "micro_batch": "batch"}
    """Former names of settings, which go on being accepted where there is such a setting."""

    without: ClassVar[tuple[str, ...]] = ()
    """Fields that this command has from what it is built on, and does not read: not its settings."""

    needed: ClassVar[tuple[str, ...]] = ()
    """Settings without which, beside the required ones, there is nothing to do."""

    wanted: ClassVar[tuple[str, ...]] = ()
    """Settings that `--help` shows beside those; `--help-all` shows all."""

    uses: ClassVar[tuple[Use, ...]] = (ROWS,)
    """When settings are read that are not read always."""

    optional_positional: ClassVar[str] = ""
    """The field that may stand without its name where none is required."""

    @field_validator("*", mode="before")
    @classmethod
    def _path_text(cls, value: Any) -> Any:
        """Paths may stand for the text that names them."""
        if isinstance(value, (list, tuple)):
            return [cls._path_text(one) for one in value]
        return str(value) if isinstance(value, Path) else value

    @field_validator("*")
    @classmethod
    def _check_whole(cls, value: Any, info: ValidationInfo) -> Any:
        """What nothing can be so many of is refused before anything counts up to it."""
        if info.field_name != "seed" and isinstance(value, int) and value > _LARGEST:
            raise ValueError(f"expected a number of at most {_LARGEST:,}")
        return value

    _asked_for: frozenset[str] = PrivateAttr(frozenset())

    def asks_for(self, name: str) -> bool:
        """Whether the user gave this setting, and so expects it to be used."""
        return name in self._asked_for

    @field_validator("device")
    @classmethod
    def _check_device(cls, name: str) -> str:
        if not _DEVICE.fullmatch(name):
            raise UserError(f"device '{name}': accepted: auto, cpu, cuda, cuda:N")
        return name

    seed: int = Field(0, ge=0, le=2**32 - 1, description="Number that everything random in this command follows from.")
    device: Annotated[str, Accepts(("auto", "cpu", "cuda", "cuda:N"), metavar="DEVICE")] = Field(
        "auto", description="Where to compute; auto: on the first GPU, where there is one."
    )
    dtype: fields.Dtype = Field(
        "auto",
        description="Number format of the computation, torch's names included; auto: bf16 on a GPU, fp32 on a CPU "
        "(search, sparsify, prune by fisher and mlp: bf16 where it is faster there and the loss stays).",
    )
    threads: int | None = Field(
        None, ge=1, le=4096, description="CPU threads that torch uses; default: torch's own choice."
    )
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository ships.")


class SpaceConfig(StageConfig):
    """What may be removed."""

    depth_granularity: Literal["block", "sublayer"] = Field(
        "block", description="What depth is removed in: whole blocks, or attention and MLP each for itself (sublayer)."
    )
    min_depth: int | None = Field(None, ge=1, description="Number of blocks that must stay; default: half of them.")
    keep_layers: Annotated[fields.CommaList, Accepts(metavar="N", several=True)] = Field(
        "", description="Numbers of the blocks that may not be removed, such as 0,-1 (the first and the last)."
    )
    exclude: Annotated[fields.CommaList | None, Accepts(metavar="BLOCKS", several=True)] = Field(
        None,
        description="Sub-blocks that keep their full width: BLOCKS or BLOCKS.NAME, such as 0.attention, 0-3.mlp, "
        "*.attention or -1 (the last block).",
    )
    channel_quantum: int = Field(
        32, ge=1, description="Channels that MLP widths are multiples of; the base's own width is kept, too."
    )
    head_quantum: int = Field(
        1, ge=1, description="Heads that numbers of query heads are multiples of; the base's own number is kept, too."
    )
    deploy: Annotated[str, Accepts(PRESETS, several=True)] = Field(
        "", description="What will serve the result; only architectures that it can serve are considered."
    )
    kv_groups: bool = Field(False, description="Remove whole KV groups instead of query heads within every group.")

    @property
    def protected(self) -> tuple[int, ...]:
        """`keep_layers` as numbers."""
        try:
            return tuple(int(part) for part in self.keep_layers.replace(" ", "").split(",") if part)
        except ValueError as error:
            raise UserError(
                f"keep-layers '{self.keep_layers}': expected numbers separated by commas, such as 0,-1"
            ) from error


class WindowsConfig(StageConfig):
    """Windows of text."""

    bos: fields.Switch = Field(
        "auto",
        description="Whether windows of text begin with the BOS token, which counts in their length and is never a "
        "target; auto: where the tokenizer adds one by itself.",
    )


class CalibrationConfig(SpaceConfig, WindowsConfig):
    """Calibration text, ranking of units and refits."""

    holds_out: ClassVar[bool] = False
    """Whether text is set apart for refits that come later, beside that of `compensate_samples`."""

    uses: ClassVar[tuple[Use, ...]] = (
        Use(("ridge",), "a compensated proxy, saliency obs or a refit (compensate)", refits),
        Use(
            ("compensate_samples",),
            "a compensated proxy, proxy fisher, saliency obs or a refit (compensate)",
            lambda c: c.holds_out or refits(c) or reads_widths(c),
        ),
    )

    samples: int | None = Field(
        None,
        ge=1,
        description="Number of calibration sequences; default: 16 (prune by fisher, mlp: 8), or all of a token file.",
    )
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per calibration sequence; default: 4096, or the model's positions if fewer."
    )
    text_field: fields.TextField = None
    batch: int | None = Field(
        None,
        ge=1,
        description="Sequences per forward pass; default: up to 4,096 tokens, on a CPU up to 1 GiB of activations.",
    )
    host_memory: fields.HostMemory = "auto"
    device_memory: fields.DeviceMemory = "auto"
    saliency: Annotated[str, Accepts(registered=SALIENCIES.names)] = Field(
        PLAIN, description="What heads and channels are ranked by; the lowest are removed first."
    )
    compensate_samples: int | None = Field(
        None,
        ge=1,
        description="Number of sequences that output projections are refitted on, of other text than the "
        "calibration's; default: 48, or fewer where there is no more text.",
    )
    ridge: float | None = Field(
        None,
        gt=0,
        description="Strength of a refit's ridge, as a share of the Gram matrix's mean diagonal; default: 0.01 in "
        "scores, and what is best on held-out text in prune.",
    )

    @property
    def refit_scale(self) -> Literal["mean", "channel"]:
        """What the ridge is relative to: the mean diagonal of the Gram matrix, or every channel's own entry."""
        return "mean"

    @property
    def counts_refit_tokens(self) -> bool:
        """Whether refits have a number of tokens, not of sequences, where `compensate_samples` says nothing."""
        return self.saliency in PREDICTED_RISES

    @property
    def longest(self) -> int:
        """Tokens of a window of text where `seq_len` says nothing, if the model has as many positions."""
        return LONGEST


class TracedConfig(StageConfig):
    """Gradient traces."""

    rank: fields.Rank = "64"

    @property
    def trace_rank(self) -> int:
        """The rank as a number, 0 for full."""
        return parse_rank(self.rank)


def parse_rank(text: str) -> int:
    """`full` → 0; a positive number otherwise."""
    if text == "full":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"rank '{text}': accepted: full, or a number from 1 up")
    return int(text)


def setting_names(kind: type[StageConfig]) -> list[str]:
    """Names of a command's settings."""
    return [name for name in kind.model_fields if name not in kind.without]


def positional_setting(kind: type[StageConfig]) -> tuple[str, bool]:
    """The setting that stands without an option name, the first required one, and whether it holds several values.

    An empty name if there is none.
    """
    required = (name for name, field in kind.model_fields.items() if field.is_required())
    name = next(required, kind.optional_positional)
    return name, bool(name) and get_origin(kind.model_fields[name].annotation) is tuple


def current_names(kind: type[StageConfig], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under the names that they have now, a section's, too.

    Raises:
        UserError: for a setting that is given under both names.
    """
    out: dict[str, Any] = {}
    keys: dict[str, object] = {}
    for key, value in values.items():
        given = str(key).replace("-", "_")
        name = kind.former.get(given, given)
        name = name if name in kind.model_fields else given
        if name in out:
            raise UserError(f"{name} is given twice, as {keys[name]} and as {key}; leave one of them out")
        keys[name] = key
        nested = name in kind.sections and isinstance(value, Mapping)
        out[name] = current_names(kind.sections[name], value) if nested else value
    return out


def build(kind: type[C], values: Mapping[str, Any], inherited: Collection[str] = ()) -> C:
    """A stage's configuration, with one clear line for what is wrong.

    Args:
        inherited: keys whose values come from a file that may serve other commands, too: those that are the default
            ask for nothing.

    Raises:
        UserError: for unknown keys (with a suggestion), missing or unacceptable values, and for settings that are
            not used (`check_used`).
    """
    values = current_names(kind, values)
    config = construct(kind, values)
    config._asked_for = frozenset(
        name
        for name in values
        if (value := getattr(config, name)) is not None
        and (value != (default := kind.model_fields[name].default) or (name not in inherited and default is not False))
    )
    check_used(config)
    return config


def check_used(config: StageConfig) -> None:
    """Refuse what was asked for and would not be read; asked again where `auto` has been resolved.

    Raises:
        UserError: naming the setting and what it goes with.
    """
    for use in applies(type(config)):
        ignored = [name for name in use.settings if config.asks_for(name)]
        if ignored and not use.read(config):
            raise UserError(f"{ignored[0].replace('_', '-')} is not used here: {use.describe()}")


_OF_ANOTHER_KIND = ("literal_error", "int_parsing", "int_from_float", "float_parsing", "bool_parsing")
"""What pydantic calls a value that is none of a setting's kind."""


def construct(kind: type[C], values: Mapping[str, Any]) -> C:
    """A stage's configuration, whatever of it is used.

    Raises:
        UserError: for unknown keys (with a suggestion), missing or unacceptable values.
    """
    accepted, values = setting_names(kind), current_names(kind, values)
    for key in values:
        if key not in accepted:
            raise UserError(f"unknown setting '{key}': {did_you_mean(key, accepted)}")
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(_in_words(kind, error)) from error


def _in_words(kind: type[StageConfig], error: ValidationError) -> str:
    """The first thing that is wrong with some settings, and what would be accepted there."""
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "settings"
    if first["type"] == "missing":
        return f"'{name}' is required: {kind.model_fields[name].description}"
    message = str(first["msg"]).removeprefix("Value error, ")
    message = f"{message[0].lower()}{message[1:]}"
    if first["type"] in _OF_ANOTHER_KIND:
        message = f"accepted: {', '.join(choices(kind.model_fields[name]))}"
    return f"{name.replace('_', '-')} '{first['input']}': {message}"
