"""Operations per token, and what the device could do at most: the MFU of the log."""

from typing import Any

import torch
from torch import nn

__all__ = ["flops_per_token", "matrix_parameters", "peak_flops"]

# Dense bf16 operations per second of one device, from the makers' data sheets; longer names first.
_PEAKS = {
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Of one device in dense bf16, None where it is not known (CPUs among others)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAKS.items() if key in name), None)


def matrix_parameters(model: Any) -> int:
    """Weights that every token is multiplied by: all linear layers, the head included (tied or not)."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def flops_per_token(
    matrices: int, attention_width: int, seq_len: int, *, trained: bool = True, teacher: tuple[int, int] | None = None
) -> float:
    """Operations of training on one token: 6 N + 12 Σ_l w_l T (PaLM, appendix B), without recomputation.

    Args:
        matrices: N, `matrix_parameters`.
        attention_width: Σ_l w_l, heads × head width summed over the layers.
        seq_len: T.
        trained: False where N is frozen (LoRA): no gradients of weights, so 4 N.
        teacher: N and Σ_l w_l of a model that runs forward beside it.
    """
    student = (6 if trained else 4) * matrices + 12 * attention_width * seq_len
    forward = 0 if teacher is None else 2 * teacher[0] + 4 * teacher[1] * seq_len
    return float(student + forward)
