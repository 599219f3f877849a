"""A loaded model and its calibration."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracenas.config import CalibrationConfig

if TYPE_CHECKING:
    import torch

    from tracenas.data.windows import WindowStart
    from tracenas.models.checkpoints.loading import LoadedModel

__all__ = ["Calibrated"]


@dataclass
class Calibrated:
    """A loaded model and its calibration.

    Args:
        tokens: int64 [N, L].
        start: how these windows begin.
        data: where the calibration text comes from, if known.
        run: the run directory, if there is one.
    """

    config: CalibrationConfig
    loaded: "LoadedModel"
    tokens: "torch.Tensor"
    start: "WindowStart"
    data: str | None
    run: Path | None
