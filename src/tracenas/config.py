"""Settings of the stages: one frozen model per command; YAML, `key=value` and options all end here."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = [
    "DemoConfig",
    "EvalConfig",
    "PlanConfig",
    "PruneConfig",
    "ReportConfig",
    "RunConfig",
    "ScoreConfig",
    "SearchConfig",
    "StageConfig",
    "build",
]

C = TypeVar("C", bound="StageConfig")


class StageConfig(BaseModel):
    """What every command takes."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    seed: int = Field(0, ge=0, description="Seed of everything random in this command.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of computation: auto is bf16 on CUDA, fp32 on the CPU."
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
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
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


class PlanConfig(SpaceConfig):
    """Feasible budgets, memory and time, before any work."""

    model: str = Field(description="Model directory or hub id.")
    params: str | None = Field(None, description="Budget: a share such as 60%, or a size such as 2.7B.")
    tolerance: float = Field(0.01, gt=0, lt=1, description="Depth of the budget window, relative.")
    population: int = Field(30, ge=2, description="Candidates per generation.")
    elites: int = Field(10, ge=1, description="Candidates carried over to the next generation.")
    iterations: int = Field(50, ge=1, description="Generations, the initial one included.")
    samples: int = Field(16, ge=1, description="Calibration sequences.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence.")
    rank: str = Field("64", description="Rank of the gradient traces, or full.")
    proxy: str = Field("phi", description="What candidates are scored by.")
    no_timing: bool = Field(False, description="Leave out the estimate of time (which imports torch).")


class SearchConfig(CalibrationConfig):
    """Find an architecture."""

    model: str = Field(description="Model directory or hub id.")
    data: str = Field(description="Text, JSONL, Parquet or token file, data-set name, or a mixture a=0.7,b=0.3.")
    params: str = Field(description="Budget for all parameters: a share such as 60%, or a size such as 2.7B.")
    out: Path = Field(description="Run directory.")
    tolerance: float = Field(0.01, gt=0, lt=1, description="Depth of the budget window, relative.")
    proxy: str = Field("phi", description="What candidates are scored by.")
    rank: str = Field("64", description="Rank of the gradient traces, or full.")
    strategy: str = Field("evolution", description="evolution, random or uniform.")
    init: Literal["importance", "uniform", "random"] = Field(
        "importance", description="Initial population of evolution."
    )
    population: int = Field(30, ge=2, description="Candidates per generation.")
    elites: int = Field(10, ge=1, description="Candidates carried over; the parents of the next generation.")
    iterations: int = Field(50, ge=1, description="Generations, the initial one included.")
    crossover: float = Field(0.7, ge=0, le=1, description="Probability that a child has two parents.")
    mutation_depth: float = Field(0.2, ge=0, le=1, description="Probability of a depth flip per child.")
    mutation_width: float = Field(0.2, ge=0, le=1, description="Probability of a width jitter per child.")
    sigma: float = Field(0.3, ge=0, description="Standard deviation of the width jitter's factor.")
    resume: bool = Field(False, description="Go on with an interrupted run.")

    @property
    def trace_rank(self) -> int:
        """The rank as a number, 0 for full."""
        return parse_rank(self.rank)


class ScoreConfig(CalibrationConfig):
    """Score one architecture."""

    model: str = Field(description="Model directory or hub id.")
    arch: Path = Field(description="Architecture JSON, or a run's best.json.")
    data: str = Field(description="Calibration text or tokens.")
    rank: str = Field("64", description="Rank of the gradient traces, or full.")
    proxy: str = Field("phi", description="What the candidate is scored by.")

    @property
    def trace_rank(self) -> int:
        """The rank as a number, 0 for full."""
        return parse_rank(self.rank)


class PruneConfig(CalibrationConfig):
    """Write the smaller checkpoint."""

    model: str = Field(description="Model directory or hub id.")
    arch: Path = Field(description="Architecture JSON, or a run's best.json (with its calibration and unit order).")
    data: str | None = Field(
        None, description="Calibration text or tokens; needed where the architecture is not a run's."
    )
    out: Path = Field(description="Checkpoint directory.")
    compensate: Literal["auto", "none", "ridge", "sequential"] = Field(
        "auto",
        description="Refit the output projections to the dense model's outputs: with its statistics (ridge) or layer by "
        "layer (sequential); auto: as the architecture was scored.",
    )
    shard_size: str = Field("5GB", description="Largest weights file.")
    save_dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="Of the checkpoint; auto: the base's.")


class EvalConfig(StageConfig):
    """Perplexity of one or more models."""

    models: tuple[str, ...] = Field(description="Model directories or hub ids.", min_length=1)
    text: str = Field(description="Held-out text: a file, wikitext2, or a token file.")
    seq_len: int | None = Field(
        None, ge=2, description="Window length; default min(4096, the smallest model's positions)."
    )
    max_windows: int | None = Field(None, ge=1, description="Use no more than this many windows.")
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(None, ge=1, description="Windows per forward pass; default: up to 4,096 tokens.")


class RunConfig(SearchConfig):
    """Search, prune, perplexity and report in one resumable command."""

    eval_text: str = Field(description="Held-out text for the perplexities.")
    eval_windows: int | None = Field(None, ge=1, description="Use no more than this many held-out windows.")
    random_architectures: int = Field(3, ge=0, description="Random architectures of the same budget to compare with.")


class ReportConfig(StageConfig):
    """Draw a run's report again."""

    run: Path = Field(description="Run directory.")
    out: Path | None = Field(None, description="File to write; default RUN/report.html.")


class DemoConfig(StageConfig):
    """The main job on the model and text that ship in the package."""

    out: Path = Field(Path("tracenas-demo"), description="Run directory.")
    params: str = Field("60%", description="Budget.")
    resume: bool = Field(False, description="Go on with an interrupted demo.")


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
