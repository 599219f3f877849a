"""Keywords of functions that search and prune. Written by scripts/keywords.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from tracenas.keywords.shared import (
    CalibrationKeywords,
    EffortKeywords,
    SpaceKeywords,
    TracedKeywords,
    TrackedKeywords,
    WindowsKeywords,
)

__all__ = [
    "BestOptions",
    "PlanOptions",
    "PruneOptions",
    "RunOptions",
    "ScoreOptions",
    "SearchOptions",
    "SelectCalibrationOptions",
    "SensitivityOptions",
]


class PlanOptions(TypedDict, total=False):
    """Of `tracenas.plan`: `tracenas plan`."""

    device: str
    dtype: str
    threads: int | None
    rank: str | float
    depth_granularity: Literal["block", "sublayer"]
    min_depth: int | None
    keep_layers: str | Sequence[str]
    exclude: str | Sequence[str] | None
    channel_quantum: int
    head_quantum: int
    deploy: str
    kv_groups: bool
    params: str | float | None
    budget: str | Sequence[str] | Mapping[str, str]
    tolerance: float
    context: int | None
    serve_batch: int | None
    latency: str | Path | None
    latency_anyway: bool
    prompt: int | None
    outtype: str
    front: bool
    costs: str | Sequence[str]
    smallest: str | float
    checkpoints: str | Sequence[str] | float | None
    effort: Literal["quick", "normal", "thorough"] | None
    minutes: float | None
    evaluations: int | None
    population: int | None
    elites: int | None
    iterations: int | None
    samples: int | None
    seq_len: int | None
    proxy: str
    sensitivity: str | Path | None
    prune: Mapping[str, Any] | None
    recover: Mapping[str, Any] | None
    text: str | Path | None
    windows: int | None
    text_field: str | None
    random_architectures: int
    recover_rivals: bool
    eval: Mapping[str, Any] | None
    bench: Mapping[str, Any] | None
    no_timing: bool


class SearchOptions(TracedKeywords, TrackedKeywords, EffortKeywords, CalibrationKeywords, total=False):
    """Of `tracenas.search`: `tracenas search`."""

    budget: str | Sequence[str] | Mapping[str, str]
    tolerance: float
    context: int | None
    serve_batch: int | None
    latency: str | Path | None
    latency_anyway: bool
    prompt: int | None
    outtype: str
    front: bool
    costs: str | Sequence[str]
    smallest: str | float
    proxy: str
    strategy: str
    start: str | Sequence[str]
    sensitivity: str | Path | None
    init: Literal["auto", "start", "importance", "uniform", "random", "nirvana"]
    include_uniform: bool | None
    crossover: float
    mutation_depth: float
    mutation_width: float
    sigma: float
    patience: int | None
    prefer: Literal["loss", "stock"]
    race: Literal["auto", "on", "off"] | bool
    workers: int | Literal["auto"]
    ray: str | None
    resume: bool


class RunOptions(SearchOptions, total=False):
    """Of `tracenas.run`: `tracenas run`."""

    checkpoints: str | Sequence[str] | float | None
    text: str | Path
    windows: int | None
    random_architectures: int
    compensate: Literal["best", "auto", "none", "ridge", "sequential"]
    recover_rivals: bool
    prune: Mapping[str, Any] | None
    recover: Mapping[str, Any] | None
    eval: Mapping[str, Any] | None
    bench: Mapping[str, Any] | None


class BestOptions(TypedDict, total=False):
    """Of `tracenas.best`: `tracenas best`."""

    params: str | None
    budget: str | Sequence[str] | Mapping[str, str]
    context: int | None
    serve_batch: int | None
    latency: str | Path | None
    latency_anyway: bool
    prompt: int | None
    outtype: str
    evaluations: int
    out: str | Path | None


class ScoreOptions(WindowsKeywords, TracedKeywords, total=False):
    """Of `tracenas.score`: `tracenas score`."""

    channel_quantum: int
    head_quantum: int
    deploy: str
    kv_groups: bool
    samples: int | None
    seq_len: int | None
    text_field: str | None
    batch: int | None
    host_memory: str | float
    device_memory: str | float
    saliency: str
    compensate_samples: int | None
    ridge: float | None
    proxy: str


class SensitivityOptions(WindowsKeywords, total=False):
    """Of `tracenas.sensitivity`: `tracenas sensitivity`."""

    channel_quantum: int
    head_quantum: int
    deploy: str
    kv_groups: bool
    samples: int | None
    seq_len: int | None
    text_field: str | None
    batch: int | None
    host_memory: str | float
    device_memory: str | float


class PruneOptions(CalibrationKeywords, total=False):
    """Of `tracenas.prune`: `tracenas prune`."""

    params: str | float | None
    budget: str | Sequence[str] | Mapping[str, str]
    tolerance: float
    context: int | None
    serve_batch: int | None
    latency: str | Path | None
    latency_anyway: bool
    prompt: int | None
    outtype: str
    data: str | Path | None
    allocation: str | None
    gamma: float | None
    compensate: Literal["best", "auto", "none", "ridge", "sequential"]
    reconstruct: Literal["none", "blocks"]
    reconstruct_steps: int
    reconstruct_rate: float
    resume: bool
    scales: Literal["fit", "logits", "none"]
    sensitivity: str | Path | None
    ridge_scale: Literal["auto", "mean", "channel"]
    shard_size: str | float
    save_dtype: str
    stub_removed_attention: bool


class SelectCalibrationOptions(SpaceKeywords, WindowsKeywords, total=False):
    """Of `tracenas.select_calibration`: `tracenas select-calibration`."""

    samples: int | None
    seq_len: int | None
    text_field: str | None
    batch: int | None
    host_memory: str | float
    device_memory: str | float
    saliency: str
    budget: str | Sequence[str] | Mapping[str, str]
    tolerance: float
    context: int | None
    serve_batch: int | None
    latency: str | Path | None
    latency_anyway: bool
    prompt: int | None
    outtype: str
    method: str | None
    allocation: str | None
    gamma: float | None
    candidates: int
    held_out: str | Path | None
    second: str | Path | None
    held_out_samples: int
    workers: int | Literal["auto"]
