"""Settings of pruning without search, and of choosing the calibration for it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.budgets import BudgetConfig
from tracenas.config.shared import CalibrationConfig
from tracenas.saliency.allocation import ALLOCATIONS
from tracenas.saliency.methods import METHODS

__all__ = ["OneShotSettings", "SelectCalibrationConfig"]


class OneShotSettings(BudgetConfig, CalibrationConfig):
    """Pruning to a budget without a search."""

    model: fields.ModelName
    data: fields.Text | None = Field(None, description="Calibration text, as for `tracenas search`, or a token file.")
    method: Annotated[str | None, Accepts(registered=METHODS.keys)] = Field(
        None,
        description="One-shot method that prunes to a budget without a search; with --params or --budget, and --data.",
    )
    seq_len: int | None = Field(
        None,
        ge=2,
        description="Tokens per calibration sequence; default: 4096 (512 for methods fisher and mlp), or the model's "
        "positions if fewer.",
    )
    params: fields.Size | None = Field(
        None,
        description="Budget of a one-shot method: a share of the model's parameters such as 50%, or a number such "
        "as 2.7B; of bytes, FLOPs and more: --budget.",
    )
    allocation: Annotated[str | None, Accepts(registered=ALLOCATIONS.names)] = Field(
        None, description="How a one-shot method shares out its budget over the layers; default: the method's own."
    )
    gamma: float | None = Field(
        None,
        gt=0,
        description="Ratio of the MLPs' sparsity to the attentions', for allocation adaptive; default: from their "
        "units' sizes.",
    )

    @property
    def longest(self) -> int:
        """As the method has it."""
        method = METHODS.get(self.method or "")
        return super().longest if method is None else method.longest


class SelectCalibrationConfig(OneShotSettings):
    """Choose the calibration set that prunes best."""

    needed = ("data", "params")
    wanted = ("method", "candidates", "samples", "seq_len", "held_out")
    without = ("compensate_samples", "ridge")

    method: Annotated[str | None, Accepts(registered=METHODS.keys)] = Field(
        "nirvana", description="One-shot method that prunes with every candidate set."
    )
    candidates: int = Field(8, ge=2, description="Number of calibration sets to draw and to prune with.")
    held_out: fields.Text | None = Field(
        None, description="Text that the divergence is measured on; default: more text of data, in no candidate set."
    )
    second: fields.Text | None = Field(
        None, description="Text of a second source; the mean of both divergences decides."
    )
    held_out_samples: int = Field(16, ge=1, description="Number of sequences of each held-out text.")
    out: Path = Field(description="Token file to write, with the ending .safetensors.")
    workers: fields.Workers = Field(
        1,
        description="Number of processes that try sets, each with --threads threads (default: the cores shared out) "
        "and a copy of the weights; auto: as many as there are cores for; results do not depend on it.",
    )
