"""Rotary embeddings as GGUF metadata, and the factors of Llama 3's scaling.

A rotary embedding turns coordinate pair j of a head of width d, at position t, by the angle t · θ_j with
θ_j = base^(-2j/d). Scaling changes θ_j; llama.cpp reads how from `rope.scaling.*`, or divides θ_j by the j-th entry
of the tensor `rope_freqs`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.exporters.gguf.weights import Array

__all__ = ["Rope", "rotary_embeddings"]

_KINDS = ("default", "linear", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """One rotary embedding.

    Args:
        base: θ's base.
        kind: `default`, `linear`, `yarn` or `llama3`.
        settings: transformers' `rope_parameters`.
    """

    base: float
    kind: str
    settings: Mapping[str, Any]
    head_dim: int

    def metadata(self) -> dict[str, Any]:
        """Keys below the file's architecture."""
        values: dict[str, Any] = {"rope.dimension_count": self.head_dim, "rope.freq_base": self.base}
        if self.kind in ("linear", "yarn"):
            values |= {"rope.scaling.type": self.kind, "rope.scaling.factor": float(self.settings["factor"])}
        if self.kind == "yarn":
            original = int(self.settings["original_max_position_embeddings"])
            values["rope.scaling.original_context_length"] = original
        return values

    def factors(self) -> Array | None:
        """What every θ_j is divided by, float32 [head_dim / 2]; None where `metadata` says it all.

        Llama 3: wavelengths 2π/θ_j beyond original/low_freq_factor are stretched by `factor`, those below
        original/high_freq_factor are kept, and those between are interpolated linearly in original/wavelength.
        """
        if self.kind != "llama3":
            return None
        s = self.settings
        factor, low, high = float(s["factor"]), float(s["low_freq_factor"]), float(s["high_freq_factor"])
        theta = self.base ** (-np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim)
        turns = int(s["original_max_position_embeddings"]) * theta / (2 * math.pi)
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        scaled = (1 - smooth) * theta / factor + smooth * theta
        return (theta / scaled).astype(np.float32)


def rotary_embeddings(config: Any, head_dim: int) -> tuple[Rope, Rope]:
    """Rotary embeddings of blocks that attend to everything, and of those with a window (the same in most families).

    Raises:
        UserError: for a scaling that llama.cpp cannot be told of.
    """
    settings = getattr(config, "rope_parameters", None) or {}
    if "full_attention" in settings:
        every, local = settings["full_attention"], settings.get("sliding_attention", settings["full_attention"])
        return _rope(every, head_dim), _rope(local, head_dim)
    rope = _rope(settings, head_dim)
    return rope, rope


def _rope(settings: Mapping[str, Any], head_dim: int) -> Rope:
    kind = str(settings.get("rope_type", "default"))
    if kind not in _KINDS:
        raise UserError(
            f"--format gguf: rope scaling '{kind}' has no counterpart in llama.cpp; accepted: {', '.join(_KINDS)}"
        )
    if float(settings.get("partial_rotary_factor") or 1.0) != 1.0:
        raise UserError("--format gguf: heads that are rotated in part (partial_rotary_factor) have no layout")
    plain = ("factor", "original_max_position_embeddings", "rope_theta", "rope_type", "type", "partial_rotary_factor")
    usual = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    if kind == "yarn":
        other = [k for k, v in settings.items() if k not in plain and v is not None and v != usual.get(k)]
        if other:
            raise UserError(f"--format gguf: yarn with its own '{other[0]}' has no counterpart in llama.cpp")
        if "original_max_position_embeddings" not in settings:
            raise UserError("--format gguf: yarn needs original_max_position_embeddings in rope_parameters")
    return Rope(float(settings.get("rope_theta", 10000.0)), kind, settings, head_dim)
