"""Keywords of all other functions. Written by scripts/keywords.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

from tracenas.keywords.shared import (
    CalibrationKeywords,
    StageKeywords,
    TracedKeywords,
    TrackedKeywords,
    WindowsKeywords,
)

__all__ = [
    "AblationOptions",
    "BenchOptions",
    "EvaluateOptions",
    "ExportOptions",
    "MeasureOptions",
    "MetricSearchOptions",
    "PushOptions",
    "RecoverOptions",
    "ReportOptions",
    "SparsifyOptions",
    "StudyOptions",
]


class MeasureOptions(StageKeywords, total=False):
    """Of `tracenas.measure`: `tracenas measure`."""

    channel_quantum: int
    head_quantum: int
    deploy: str
    kv_groups: bool
    backend: Literal["torch", "torch-compile", "llama.cpp", "vllm"]
    outtype: str
    llama_python: str | Path | None
    vllm_python: str | Path | None
    enforce_eager: bool
    points: str | Sequence[str]
    turns: int
    new_tokens: int
    resume: bool


class EvaluateOptions(TypedDict, total=False):
    """Of `tracenas.evaluate`: `tracenas eval`."""

    device: str
    dtype: str
    threads: int | None
    trust_remote_code: bool
    bos: Literal["auto", "on", "off"] | bool
    text: str | Path | None
    seq_len: int | None
    windows: int | None
    text_field: str | None
    batch: int | None
    tasks: str | Sequence[str] | None
    suite: str | None
    task_data: str | Path | None
    shots: int | None
    limit: int | None
    task_batch: int
    out: str | Path | None
    host_memory: str | float
    device_memory: str | float


class ReportOptions(TypedDict, total=False):
    """Of `tracenas.report`: `tracenas report`."""

    out: str | Path | None


class RecoverOptions(WindowsKeywords, TrackedKeywords, total=False):
    """Of `tracenas.recover`: `tracenas recover`."""

    tokens: str | float | None
    max_steps: int | None
    resume: bool
    validation: str | Path | None
    text: str | Path | None
    windows: int | None
    seq_len: int | None
    text_field: str | None
    global_batch: int | None
    batch: int | None
    learning_rate: float | None
    warmup: float
    decay: float
    decay_form: Literal["linear", "cosine"]
    min_lr_ratio: float
    weight_decay: float | None
    clip: float
    activation_checkpointing: bool
    fsdp: bool
    prefetch: bool
    save_every: int | None
    eval_every: int
    log_every: int
    keep_last: int
    keep_checkpoints: bool
    peak_tflops: float | None
    teacher: str | Path | None
    temperature: float
    top_k: int
    ce_weight: float
    lora_rank: int
    lora_alpha: float
    lora_dropout: float
    keep_zeros: bool
    save_dtype: str
    shard_size: str | float


class BenchOptions(StageKeywords, total=False):
    """Of `tracenas.bench`: `tracenas bench`."""

    backend: Literal["torch", "torch-compile", "llama.cpp", "vllm"]
    outtype: str
    llama_python: str | Path | None
    vllm_python: str | Path | None
    enforce_eager: bool
    prompt: int | None
    new_tokens: int
    batch: str | Sequence[str]
    trials: int
    warmup: int
    cache: Literal["dynamic", "static"]
    no_memory: bool
    out: str | Path | None


class ExportOptions(TypedDict, total=False):
    """Of `tracenas.export`: `tracenas export`."""

    threads: int | None
    format: Literal["gguf"]
    outtype: str
    layout: str
    tokenizer: Literal["auto", "none"]
    pre: str
    check: bool
    check_ids: str | Sequence[str]
    llama_python: str | Path | None


class PushOptions(TypedDict, total=False):
    """Of `tracenas.push`: `tracenas push`."""

    private: bool
    revision: str | None
    dry_run: bool


class SparsifyOptions(WindowsKeywords, total=False):
    """Of `tracenas.sparsify`: `tracenas sparsify`."""

    metric: str | Path
    data: str | Path | None
    compare: Literal["auto", "row", "layer", "global"]
    ratios: str | Path
    samples: int | None
    seq_len: int | None
    text_field: str | None
    batch: int | None
    gradients: str | Path | None
    save_dtype: str
    shard_size: str | float
    host_memory: str | float
    run: str | Path | None
    proxy: str
    rank: str | float
    population: int
    elites: int
    iterations: int
    spread: float
    workers: int | Literal["auto"]
    resume: bool


class MetricSearchOptions(WindowsKeywords, TrackedKeywords, total=False):
    """Of `tracenas.metric_search`: `tracenas metric search`."""

    text: str | Path
    sparsity: str | float
    compare: Literal["row", "layer"]
    samples: int
    seq_len: int | None
    windows: int
    text_field: str | None
    batch: int | None
    population: int
    elites: int
    iterations: int
    crossover: float
    mutation: float
    tournament: int
    max_nodes: int
    initial_depth: int
    variables: str
    init: Literal["random", "known"]
    patience: int | None
    workers: int
    resume: bool


class StudyOptions(TracedKeywords, TrackedKeywords, CalibrationKeywords, total=False):
    """Of `tracenas.study`: `tracenas study`."""

    params: str | float | None
    across_sizes: bool
    sizes: str
    tolerance: float
    architectures: int
    resamples: int
    resume: bool
    text: str | Path
    workers: int | Literal["auto"]
    ray: str | None
    windows: int
    proxies: str | Sequence[str]
    combinations: str | None
    targets: str | Sequence[str]
    starts: str | Sequence[str]
    steps: int
    long_steps: int | None
    seeds: int
    target: str | None
    recover_batch: int
    recover_seq_len: int | None
    learning_rate: float
    lora_rank: int
    lora_alpha: float
    lora_steps: int
    lora_learning_rate: float
    tasks: str | Sequence[str] | None
    task_data: str | Path | None
    limit: int | None


class AblationOptions(TracedKeywords, CalibrationKeywords, total=False):
    """Of `tracenas.ablation`: `tracenas study ablation`."""

    params: str | float | None
    across_sizes: bool
    sizes: str
    tolerance: float
    architectures: int
    resamples: int
    resume: bool
    proxy: str
    study: str | Path | None
    sample_counts: str | Sequence[str]
    lengths: str | Sequence[str] | None
    ranks: str | Sequence[str]
