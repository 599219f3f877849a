"""What `dtype=auto` comes to on a CPU: bf16 where the processor multiplies it faster and the base's loss stays.

The weights must be stored in bf16, so that nothing is rounded but activations, and the work must be worth a comparison.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tracenas.benchmark.machine import product_flops
from tracenas.config import StageConfig
from tracenas.dtypes import short_name
from tracenas.models.checkpoints.loading import LoadedModel
from tracenas.models.checkpoints.source import ModelSource
from tracenas.models.functionals.perplexity import window_losses
from tracenas.pipeline.loading import load_model
from tracenas.reporting.progress import phase

__all__ = ["DIFFERENCE", "in_half_precision", "may_halve"]

_log = logging.getLogger("tracenas")

DIFFERENCE = 1e-3
"""Nats per token that the base's loss may differ by, beyond two standard errors of the paired difference."""
_FASTER = 1.5
"""How many times as fast products must be."""
_OPERATIONS = 2e11
"""Of one pass over the text, below which everything is quick in float32."""
_TOKENS, _SEQUENCES = 2048, 4
"""Of the text that the losses are compared on, at least."""


def may_halve(dtype: str, device: torch.device, config: Mapping[str, Any], parameters: int, tokens: int) -> bool:
    """Whether bf16 is worth a comparison with float32.

    Args:
        dtype: of the settings.
        config: the model's config.json.
        parameters: of the model.
        tokens: of a pass over the text.
    """
    stored = short_name(str(config.get("dtype") or config.get("torch_dtype")))
    if dtype != "auto" or device.type != "cpu" or stored != "bf16" or 2.0 * parameters * tokens < _OPERATIONS:
        return False
    return product_flops(device, torch.bfloat16) >= _FASTER * product_flops(device, torch.float32)


def in_half_precision(
    source: ModelSource, config: StageConfig, loaded: LoadedModel, parameters: int, tokens: Tensor
) -> LoadedModel:
    """The model in bf16, where `may_halve` and the loss allow it; else as it is, and why is said.

    Args:
        loaded: in float32; of no use afterwards where another is returned.
        tokens: int64 [N, L], of which the first are compared on.
    """
    if not may_halve(config.dtype, loaded.device, source.config, parameters, tokens.numel()):
        return loaded
    windows = tokens[: max(_SEQUENCES, -(-_TOKENS // tokens.shape[1]))]
    exact = _losses(loaded, windows)
    loaded.release()
    half = load_model(source, config.model_copy(update={"dtype": "bf16"}), loaded.keep)
    differences = _losses(half, windows) - exact
    mean = float(differences.mean())
    error = float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0
    measured = f"the base's loss differs by {mean:.4f} ± {error:.4f} nats per token on {windows.numel():,} tokens"
    if abs(mean) <= DIFFERENCE + 2 * error:
        _log.info("dtype auto: bf16, which this processor multiplies faster; %s", measured)
        return half
    _log.info("dtype auto: fp32, as in bf16 %s", measured)
    half.release()
    return load_model(source, config, loaded.keep)


def _losses(loaded: LoadedModel, windows: Tensor) -> Tensor:
    with phase(f"loss of the base in {loaded.dtype_name}", len(windows)) as steps:
        return window_losses(loaded.model, windows, report=steps.report)
