"""Settings of pruning without search, and of choosing the calibration for it."""

from pathlib import Path

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import CalibrationConfig
from tracenas.saliency.methods import METHODS

__all__ = ["OneShotSettings", "SelectCalibrationConfig"]


class OneShotSettings(CalibrationConfig):
    """A method: its saliency (see `saliency`), its allocation, its budget and the text it measures on."""

    model: fields.ModelName
    data: str | None = Field(None, description="Calibration text or tokens.")
    method: str | None = Field(
        None, description="One-shot method: fisher, mlp, nirvana, wanda, magnitude, taylor, flap, shortgpt or uniform."
    )
    seq_len: int | None = Field(
        None,
        ge=2,
        description="Tokens per sequence; default min(4096, the model's positions), at most 512 for fisher and mlp.",
    )
    params: str | None = Field(
        None, description="Budget of a one-shot method: a share such as 50%, or a size such as 2.7B."
    )
    tolerance: fields.Tolerance = 0.01
    allocation: str | None = Field(
        None,
        description="How a one-shot method shares out its budget: adaptive, depth, global, global_units, mlp, solver "
        "or uniform; "
        "default: the method's own.",
    )
    gamma: float | None = Field(
        None,
        gt=0,
        description="MLP sparsity over attention sparsity, for allocation adaptive; default: from the unit sizes.",
    )

    @property
    def longest(self) -> int:
        """As the method has it."""
        method = METHODS.get(self.method or "")
        return super().longest if method is None else method.longest


class SelectCalibrationConfig(OneShotSettings):
    """Choose the calibration set that prunes best."""

    without = ("compensate_samples", "ridge")

    method: str | None = Field("nirvana", description="One-shot method that every candidate set prunes with.")
    candidates: int = Field(8, ge=2, description="Calibration sets to draw and to prune with.")
    held_out: str | None = Field(
        None, description="Text that the divergence is measured on; default: more text of data, in no candidate set."
    )
    second: str | None = Field(None, description="Text of a second source; the mean of both divergences decides.")
    held_out_samples: int = Field(16, ge=1, description="Sequences of each held-out text.")
    out: Path = Field(description="Token file to write, .safetensors.")
