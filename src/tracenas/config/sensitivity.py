"""Settings of sensitivity tables."""

from pathlib import Path

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import CalibrationConfig
from tracenas.saliency.methods import SHORT

__all__ = ["SensitivityConfig"]


class SensitivityConfig(CalibrationConfig):
    """Measure the cost of every width of every sub-block."""

    without = ("depth_granularity", "min_depth", "keep_layers", "exclude", "saliency", "compensate_samples", "ridge")

    model: fields.ModelName
    data: str = Field(description="Text or tokens to measure on.")
    out: Path = Field(description="Table to write, .safetensors.")
    seq_len: int | None = Field(None, ge=2, description="Tokens per sequence; default min(512, the model's positions).")
    samples: int | None = Field(
        None, ge=1, description="Sequences; default as many as 24,576 tokens are, or all of a token file."
    )

    @property
    def longest(self) -> int:
        """As the methods that read the table have it."""
        return SHORT
