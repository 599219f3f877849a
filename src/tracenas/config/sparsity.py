"""Settings of sparsify and metric."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import StageConfig, WindowsConfig
from tracenas.config.tracking import TrackedConfig
from tracenas.config.usage import TRACED, Use
from tracenas.proxies import PROXIES
from tracenas.saliency.unstructured import METRICS
from tracenas.symbolic import KNOWN, VARIABLES

__all__ = ["MetricSearchConfig", "MetricShowConfig", "SparsifyConfig"]


def _of_masks() -> list[str]:
    """Proxies that masked weights can be scored by."""
    return [name for name in PROXIES if PROXIES.get(name).needs <= {"trace"}]


class SparsifyConfig(WindowsConfig):
    """Unstructured and N:M pruning."""

    wanted = ("metric", "data", "ratios", "samples", "seq_len", "device")
    uses = (
        Use(("samples", "seq_len", "text_field", "bos", "batch"), "data", lambda c: c.data is not None),
        Use(
            ("run", "proxy", "population", "elites", "iterations", "rank", "workers", "resume"),
            "ratios search",
            lambda c: c.ratios == "search",
        ),
        TRACED,
        Use(("spread",), "ratios search or a file of ratios", lambda c: c.ratios not in ("uniform", "owl")),
    )

    model: fields.ModelName
    metric: Annotated[str, Accepts(registered=METRICS.names, file=True)] = Field(
        "wanda",
        description="What weights are ranked by: the name of a metric, an expression such as 'abs(W) * mms(G)', or a "
        "JSON file of one.",
    )
    sparsity: fields.Sparsity = Field(description="Share of the weights that become zero, such as 0.5, or N:M.")
    data: fields.Text | None = Field(
        None,
        description="Calibration text, as for `tracenas search`; needed by metrics that read inputs or gradients.",
    )
    out: Path = Field(description="Directory of the checkpoint, which is made.")
    compare: Literal["auto", "row", "layer", "global"] = Field(
        "auto",
        description="What a weight is compared with: its output row, its matrix, or all matrices; auto: as the "
        "metric's authors have it.",
    )
    ratios: Annotated[str, Accepts(("uniform", "owl", "search"), file=True)] = Field(
        "uniform",
        description="How zeros are shared out over the layers: equally, by outliers (owl), as a search finds, or as a "
        "JSON file says.",
    )
    samples: int | None = Field(
        None, ge=1, description="Number of calibration sequences; default: 128, or all of a token file."
    )
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per calibration sequence; default: 2048, or the model's positions if fewer."
    )
    text_field: fields.TextField = None
    batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
    gradients: Path | None = Field(
        None, description="File of gradient statistics, which are read from it if it is there, and else written to it."
    )
    save_dtype: fields.SaveDtype = "auto"
    shard_size: fields.ShardSize = "5GB"
    host_memory: fields.HostMemory = "auto"
    run: Path | None = Field(
        None, description="Directory of the search for ratios; default: the checkpoint's name with .search."
    )
    proxy: Annotated[str, Accepts(registered=_of_masks)] = Field(
        "phi", description="What the candidates of a search for ratios are scored by."
    )
    rank: fields.Rank = "64"
    population: int = Field(30, ge=2, description="Number of candidates per generation of a search for ratios.")
    elites: int = Field(10, ge=1, description="Number of candidates carried over to its next generation.")
    iterations: int = Field(50, ge=1, description="Number of its generations, the initial one included.")
    spread: float = Field(
        0.25, gt=0, lt=1, description="Farthest that a sub-block's share of zeros may be from the global one."
    )
    workers: fields.Workers = Field(
        1,
        description="Number of processes that score candidates of a search for ratios, as for `tracenas search`.",
    )
    resume: bool = Field(False, description="Go on with an interrupted search for ratios.")


class MetricSearchConfig(WindowsConfig, TrackedConfig):
    """Discover pruning metrics by genetic programming."""

    wanted = ("sparsity", "population", "iterations", "workers", "resume")

    model: fields.ModelName
    data: fields.Text = Field(description="Calibration text, as for `tracenas search`, or a token file.")
    text: fields.Text = Field(
        description="Held-out text: a metric's fitness is the perplexity there, right after pruning."
    )
    out: Path = Field(description="Directory of the search, which is made.")
    sparsity: fields.Sparsity = Field("0.5", description="Share of the weights that become zero, or N:M such as 2:4.")
    compare: Literal["row", "layer"] = Field(
        "row", description="What a weight is compared with: its output row, or its matrix."
    )
    samples: int = Field(32, ge=1, description="Number of calibration sequences.")
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default: 2048, or the model's positions if fewer."
    )
    windows: int = Field(32, ge=1, description="Number of held-out windows that a fitness is measured on.")
    text_field: fields.TextField = None
    batch: int | None = Field(None, ge=1, description="Sequences per forward pass; default: up to 4,096 tokens.")
    population: int = Field(40, ge=2, description="Number of metrics per generation.")
    elites: int = Field(4, ge=1, description="Number of metrics carried over to the next generation.")
    iterations: int = Field(20, ge=1, description="Number of generations, the initial one included.")
    crossover: float = Field(0.5, ge=0, le=1, description="Probability that a child has two parents.")
    mutation: float = Field(0.3, ge=0, le=1, description="Probability that a child is mutated.")
    tournament: int = Field(
        4, ge=1, description="Number of metrics that are drawn for a parent; the best of them becomes it."
    )
    max_nodes: int = Field(20, ge=2, description="Number of nodes of an expression at most.")
    initial_depth: int = Field(4, ge=2, description="Depth of the initial expressions at most, in nodes.")
    variables: Annotated[str, Accepts(registered=lambda: VARIABLES, several=True)] = Field(
        "W,G,X", description="What expressions may read: W the weight, G its gradient, X the norm of its input."
    )
    init: Literal["random", "known"] = Field(
        "random",
        description="What the first generation is: random expressions, the published ones among them (known) or not.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Number of generations without progress after which the search ends; default: it does not.",
    )
    workers: int = Field(
        1,
        ge=1,
        description="Number of processes that evaluate, each with --threads threads; results do not depend on it.",
    )
    resume: bool = Field(False, description="Go on with an interrupted search in the directory.")


class MetricShowConfig(StageConfig):
    """What an expression is."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")

    metric: Annotated[str, Accepts(registered=KNOWN.keys, file=True)] = Field(
        description="The metric: an expression, a JSON file of one, or the name of a published one."
    )
