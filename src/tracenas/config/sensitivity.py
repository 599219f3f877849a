"""Settings of sensitivity tables."""

from pathlib import Path

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import CalibrationConfig
from tracenas.saliency.methods import SHORT

__all__ = ["SensitivityConfig"]


class SensitivityConfig(CalibrationConfig):
    """Measure the cost of every width of every sub-block."""

    wanted = ("samples", "seq_len", "device")
    without = ("depth_granularity", "min_depth", "keep_layers", "exclude", "saliency", "compensate_samples", "ridge")

    model: fields.ModelName
    data: fields.Text = Field(description="Text to measure on, as for `tracenas search`, or a token file.")
    out: Path = Field(description="Table to write, a file with the ending .safetensors.")
    seq_len: int | None = Field(
        None, ge=2, description="Tokens per sequence; default: 512, or the model's positions if fewer."
    )
    samples: int | None = Field(
        None, ge=1, description="Number of sequences; default: as many as 24,576 tokens are, or all of a token file."
    )

    @property
    def longest(self) -> int:
        """As the methods that read the table have it."""
        return SHORT
