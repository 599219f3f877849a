"""Settings of the stages: one frozen model per command; YAML, `key=value` and options all end here."""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = [
    "BenchConfig",
    "DemoConfig",
    "EvalConfig",
    "MetricSearchConfig",
    "MetricShowConfig",
    "PlanConfig",
    "PruneConfig",
    "RecoverConfig",
    "ReportConfig",
    "RunConfig",
    "ScoreConfig",
    "SearchConfig",
    "SparsifyConfig",
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
    """Perplexity and task accuracy of one or more models."""

    models: tuple[str, ...] = Field(description="Model directories or hub ids.", min_length=1)
    text: str | None = Field(None, description="Held-out text for a perplexity: a file, wikitext2, or a token file.")
    seq_len: int | None = Field(None, ge=2, description="Window length; default min(4096, the smallest model's positions).")
    max_windows: int | None = Field(None, ge=1, description="Use no more than this many windows.")
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(None, ge=1, description="Windows per forward pass; default: up to 4,096 tokens.")
    tasks: str | None = Field(None, description="Tasks of lm-eval, such as piqa,arc_challenge:25 (25 examples each).")
    suite: str | None = Field(None, description="paper: the nine tasks of TraceNAS with the paper's shots.")
    task_data: Path | None = Field(None, description="Folder with TASK/SPLIT.jsonl, instead of fetching the tasks' data.")
    shots: int | None = Field(None, ge=0, description="Examples before every question, for tasks that name no number.")
    limit: int | None = Field(None, ge=1, description="Questions per task.")
    batch_size: int = Field(8, ge=1, description="Answers scored per forward pass.")
    out: Path | None = Field(None, description="File to write the results to, JSON.")

    @field_validator("tasks", mode="before")
    @classmethod
    def _join_tasks(cls, value: Any) -> Any:
        return ",".join(str(v) for v in value) if isinstance(value, (list, tuple)) else value


class RunConfig(SearchConfig):
    """Search, prune, perplexity and report in one resumable command."""

    eval_text: str = Field(description="Held-out text for the perplexities.")
    eval_windows: int | None = Field(None, ge=1, description="Use no more than this many held-out windows.")
    random_architectures: int = Field(3, ge=0, description="Random architectures of the same budget to compare with.")


class RecoverConfig(StageConfig):
    """Train a pruned model until it is useful again."""

    model: str = Field(description="Checkpoint to recover: a directory or hub id.")
    method: Literal["pretrain", "lora", "distill"] = Field(
        description="pretrain (continued, on text), lora (instruction tuning) or distill (from the dense base)."
    )
    data: str = Field(
        description="Text or tokens as in search; for lora prompts and responses or chats (JSONL, Parquet, hub)."
    )
    out: Path = Field(description="Directory of the recovered checkpoint; log and training state are in it, too.")
    max_steps: int = Field(ge=1, description="Optimizer steps.")
    resume: bool = Field(False, description="Go on with an interrupted run.")
    eval_text: str | None = Field(None, description="Held-out text for the perplexity while training.")
    eval_windows: int | None = Field(64, ge=1, description="Use no more than this many held-out windows.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence; default min(4096, positions).")
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    global_batch: int = Field(1024, ge=1, description="Sequences per step, over all processes.")
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass and process.")
    learning_rate: float | None = Field(None, gt=0, description="Peak; default 1e-4.")
    warmup: float = Field(0.05, ge=0, le=1, description="Share of the steps.")
    decay: float = Field(0.30, ge=0, le=1, description="Share of the steps; those between are stable.")
    decay_form: Literal["linear", "cosine"] = Field("linear", description="Of the decay.")
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Learning rate at the end, share of the peak.")
    weight_decay: float | None = Field(None, ge=0, description="AdamW's; default 0.1, lora 0.")
    clip: float = Field(1.0, ge=0, description="Largest norm of the gradient; 0: no clipping.")
    activation_checkpointing: bool = Field(False, description="Compute activations again instead of keeping them.")
    fsdp: bool = Field(False, description="Shard model and optimizer (GPUs, under torchrun or accelerate launch).")
    prefetch: bool = Field(False, description="Prepare data in a process of its own.")
    save_every: int | None = Field(None, ge=1, description="Steps between checkpoints; default a tenth of max_steps.")
    eval_every: int = Field(0, ge=0, description="Steps between evaluations; 0: with every checkpoint.")
    log_every: int = Field(10, ge=1, description="Steps between records of log.jsonl.")
    keep_last: int = Field(2, ge=1, description="Newest checkpoints kept while training, beside the best one.")
    keep_checkpoints: bool = Field(False, description="Keep checkpoints and optimizer when training has ended.")
    report_to: str = Field("", description="Also log to tensorboard, wandb, trackio (several: separated by commas).")
    run_name: str | None = Field(None, description="Name of the run there.")
    peak_tflops: float | None = Field(None, gt=0, description="Of one device, for the MFU; default: known GPUs' own.")
    teacher: str | None = Field(None, description="distill: the dense model; default: what the card names.")
    temperature: float = Field(1.0, gt=0, description="distill: softens both distributions.")
    top_k: int = Field(0, ge=0, description="distill: keep this many of the teacher's logits; 0: all.")
    ce_weight: float = Field(0.0, ge=0, le=1, description="distill: share of the plain cross-entropy.")
    lora_rank: int = Field(8, ge=1, description="lora: r.")
    lora_alpha: float = Field(16, gt=0, description="lora: alpha; adapters are scaled by alpha / r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="lora: dropout of the adapters' input.")
    keep_zeros: bool = Field(True, description="Keep the zeros of an unstructured sparse checkpoint (sparsity.json).")
    save_dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="Of the checkpoint; auto: as it was.")
    shard_size: str = Field("5GB", description="Largest weights file.")


class ReportConfig(StageConfig):
    """Draw a run's report again."""

    run: Path = Field(description="Run directory.")
    out: Path | None = Field(None, description="File to write; default RUN/report.html.")


class DemoConfig(StageConfig):
    """The main job on the model and text that ship in the package."""

    out: Path = Field(Path("tracenas-demo"), description="Run directory.")
    params: str = Field("60%", description="Budget.")
    resume: bool = Field(False, description="Go on with an interrupted demo.")


class SparsifyConfig(StageConfig):
    """Unstructured and N:M pruning."""

    model: str = Field(description="Model directory or hub id.")
    metric: str = Field("wanda", description="A registered metric, an expression such as 'abs(W) * mms(G)', or a JSON file of one.")
    sparsity: str = Field(description="Share of zeros in [0, 1), such as 0.5, or N:M such as 2:4.")
    data: str | None = Field(None, description="Calibration text or tokens; needed by metrics that read inputs or gradients.")
    out: Path = Field(description="Checkpoint directory.")
    compare: Literal["auto", "row", "layer", "global"] = Field(
        "auto", description="What a weight is compared with: its output row, its matrix, all matrices; auto: as the metric's authors."
    )
    ratios: str = Field("uniform", description="uniform, owl, search, or a JSON file (a ratio search's best.json).")
    samples: int | None = Field(None, ge=1, description="Calibration sequences; default 128, or all of a token file.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence; default min(2048, the model's positions).")
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
    gradients: Path | None = Field(None, description="File of gradient statistics: used if it is there, else written there.")
    save_dtype: Literal["auto", "fp32", "bf16"] = Field("auto", description="Of the checkpoint; auto: the base's.")
    shard_size: str = Field("5GB", description="Largest weights file.")
    run: Path | None = Field(None, description="ratios=search: run directory; default: the checkpoint's name with .search.")
    proxy: str = Field("phi", description="ratios=search: what candidates are scored by.")
    rank: str = Field("64", description="ratios=search: rank of the gradient traces, or full.")
    population: int = Field(30, ge=2, description="ratios=search: candidates per generation.")
    elites: int = Field(10, ge=1, description="ratios=search: candidates carried over.")
    iterations: int = Field(50, ge=1, description="ratios=search: generations, the initial one included.")
    spread: float = Field(0.25, gt=0, lt=1, description="ratios=search: farthest a sub-block's share may be from the global one.")
    resume: bool = Field(False, description="ratios=search: go on with an interrupted search.")


class MetricSearchConfig(StageConfig):
    """Discover pruning metrics by genetic programming."""

    model: str = Field(description="Model directory or hub id.")
    data: str = Field(description="Calibration text or tokens.")
    eval_text: str = Field(description="Held-out text: a metric's fitness is its perplexity there, right after pruning.")
    out: Path = Field(description="Run directory.")
    sparsity: str = Field("0.5", description="Share of zeros in [0, 1), or N:M such as 2:4.")
    compare: Literal["row", "layer"] = Field("row", description="What a weight is compared with: its output row, or its matrix.")
    samples: int = Field(32, ge=1, description="Calibration sequences.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence; default min(2048, the model's positions).")
    eval_windows: int = Field(32, ge=1, description="Held-out windows of a fitness evaluation.")
    text_field: str | None = Field(None, description="Field of JSONL, Parquet or hub data that holds the text.")
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
    population: int = Field(40, ge=2, description="Metrics per generation.")
    elites: int = Field(4, ge=1, description="Metrics carried over to the next generation.")
    iterations: int = Field(20, ge=1, description="Generations, the initial one included.")
    crossover: float = Field(0.5, ge=0, le=1, description="Probability that a child has two parents.")
    mutation: float = Field(0.3, ge=0, le=1, description="Probability that a child is mutated.")
    tournament: int = Field(4, ge=1, description="Metrics drawn for a parent; the best of them becomes it.")
    max_nodes: int = Field(20, ge=2, description="Nodes of an expression at most.")
    initial_depth: int = Field(4, ge=2, description="Depth of the initial trees at most.")
    variables: str = Field("W,G,X", description="What expressions may read: W weight, G gradient, X input norm.")
    init: Literal["random", "known"] = Field("random", description="known: the published metrics stand in the first generation.")
    patience: int | None = Field(None, ge=1, description="Generations without progress after which the search ends.")
    workers: int = Field(1, ge=1, description="Processes that evaluate; the results do not depend on it.")
    resume: bool = Field(False, description="Go on with an interrupted search.")


class MetricShowConfig(StageConfig):
    """What an expression is."""

    metric: str = Field(description="An expression, a JSON file of one, or a registered name of the published metrics.")


class BenchConfig(StageConfig):
    """Latency, throughput and memory of one or more models."""

    models: tuple[str, ...] = Field(description="Model directories or hub ids; the first is the base.", min_length=1)
    prompt: int | None = Field(None, ge=1, description="Prompt tokens; default min(4096, positions - new tokens).")
    new_tokens: int = Field(128, ge=2, description="Tokens generated after the prompt.")
    batch_size: int = Field(1, ge=1, description="Sequences at once.")
    trials: int = Field(20, ge=1, description="Trials per model, in turns.")
    warmup: int = Field(2, ge=0, description="Turns before the trials that do not count.")
    cache: Literal["dynamic", "static"] = Field("dynamic", description="KV-cache: dynamic or static.")
    no_memory: bool = Field(False, description="Leave out peak memory (on the CPU it takes a process per model).")
    out: Path | None = Field(None, description="File to write the results to, JSON.")


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
