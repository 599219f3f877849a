"""Settings of sparsify and metric."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import StageConfig, WindowsConfig
from tracenas.config.usage import TRACED, Use

__all__ = ["MetricSearchConfig", "MetricShowConfig", "SparsifyConfig"]


class SparsifyConfig(WindowsConfig):
    """Unstructured and N:M pruning."""

    uses = (
        Use(("samples", "seq_len", "text_field", "bos", "micro_batch"), "data", lambda c: c.data is not None),
        Use(
            ("run", "proxy", "population", "elites", "iterations", "rank", "resume"),
            "ratios search",
            lambda c: c.ratios == "search",
        ),
        TRACED,
        Use(("spread",), "ratios search or a file of ratios", lambda c: c.ratios not in ("uniform", "owl")),
    )

    model: fields.ModelName
    metric: str = Field(
        "wanda", description="A registered metric, an expression such as 'abs(W) * mms(G)', or a JSON file of one."
    )
    sparsity: str = Field(description="Share of zeros in [0, 1), such as 0.5, or N:M such as 2:4.")
    data: str | None = Field(
        None, description="Calibration text or tokens; needed by metrics that read inputs or gradients."
    )
    out: Path = Field(description="Checkpoint directory.")
    compare: Literal["auto", "row", "layer", "global"] = Field(
        "auto",
        description="Compared with: its output row, matrix, all matrices; auto: as the metric's authors.",
    )
    ratios: str = Field("uniform", description="uniform, owl, search, or a JSON file (a ratio search's best.json).")
    samples: int | None = Field(None, ge=1, description="Calibration sequences; default 128, or all of a token file.")
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default min(2048, the model's positions)."
    )
    text_field: fields.TextField = None
    micro_batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
    gradients: Path | None = Field(
        None, description="File of gradient statistics: used if it is there, else written there."
    )
    save_dtype: fields.Dtype = Field("auto", description="Of the written weights; auto: each as the base stores it.")
    shard_size: fields.ShardSize = "5GB"
    run: Path | None = Field(
        None, description="ratios=search: run directory; default: the checkpoint's name with .search."
    )
    proxy: str = Field("phi", description="ratios=search: what candidates are scored by.")
    rank: str = Field("64", description="ratios=search: rank of the gradient traces, or full.")
    population: int = Field(30, ge=2, description="ratios=search: candidates per generation.")
    elites: int = Field(10, ge=1, description="ratios=search: candidates carried over.")
    iterations: int = Field(50, ge=1, description="ratios=search: generations, the initial one included.")
    spread: float = Field(
        0.25, gt=0, lt=1, description="ratios=search: farthest a sub-block's share may be from the global one."
    )
    resume: bool = Field(False, description="ratios=search: go on with an interrupted search.")


class MetricSearchConfig(WindowsConfig):
    """Discover pruning metrics by genetic programming."""

    model: fields.ModelName
    data: str = Field(description="Calibration text or tokens.")
    eval_text: str = Field(
        description="Held-out text: a metric's fitness is its perplexity there, right after pruning."
    )
    out: Path = Field(description="Run directory.")
    sparsity: str = Field("0.5", description="Share of zeros in [0, 1), or N:M such as 2:4.")
    compare: Literal["row", "layer"] = Field(
        "row", description="What a weight is compared with: its output row, or its matrix."
    )
    samples: int = Field(32, ge=1, description="Calibration sequences.")
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default min(2048, the model's positions)."
    )
    eval_windows: int = Field(32, ge=1, description="Held-out windows of a fitness evaluation.")
    text_field: fields.TextField = None
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
    init: Literal["random", "known"] = Field(
        "random", description="known: the published metrics stand in the first generation."
    )
    patience: int | None = Field(None, ge=1, description="Generations without progress after which the search ends.")
    workers: int = Field(
        1, ge=1, description="Processes that evaluate (each with --threads threads); the results do not depend on it."
    )
    resume: bool = Field(False, description="Go on with an interrupted search.")


class MetricShowConfig(StageConfig):
    """What an expression is."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")

    metric: str = Field(description="An expression, a JSON file of one, or a registered name of the published metrics.")
