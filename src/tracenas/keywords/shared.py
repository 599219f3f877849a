"""Keywords that several functions have. Written by scripts/keywords.py."""

from collections.abc import Sequence
from typing import Literal, TypedDict

__all__ = [
    "CalibrationKeywords",
    "EffortKeywords",
    "SpaceKeywords",
    "StageKeywords",
    "TracedKeywords",
    "TrackedKeywords",
    "WindowsKeywords",
]


class StageKeywords(TypedDict, total=False):
    """Machine and randomness."""

    seed: int
    device: str
    dtype: str
    threads: int | None
    trust_remote_code: bool


class SpaceKeywords(StageKeywords, total=False):
    """What may be removed."""

    depth_granularity: Literal["block", "sublayer"]
    min_depth: int | None
    keep_layers: str | Sequence[str]
    exclude: str | Sequence[str] | None
    channel_quantum: int
    head_quantum: int
    deploy: str
    kv_groups: bool


class WindowsKeywords(StageKeywords, total=False):
    """Windows of text."""

    bos: Literal["auto", "on", "off"] | bool


class TracedKeywords(StageKeywords, total=False):
    """Gradient traces."""

    rank: str | float


class TrackedKeywords(StageKeywords, total=False):
    """Experiment trackers."""

    report_to: str | Sequence[str]
    run_name: str | None


class EffortKeywords(StageKeywords, total=False):
    """Sizes of a search."""

    effort: Literal["quick", "normal", "thorough"] | None
    minutes: float | None
    evaluations: int | None
    population: int | None
    elites: int | None
    iterations: int | None
    samples: int | None
    seq_len: int | None


class CalibrationKeywords(SpaceKeywords, WindowsKeywords, total=False):
    """Calibration text, ranking of units and refits."""

    samples: int | None
    seq_len: int | None
    text_field: str | None
    batch: int | None
    host_memory: str | float
    device_memory: str | float
    saliency: str
    compensate_samples: int | None
    ridge: float | None
