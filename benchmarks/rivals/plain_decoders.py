"""Decoders whose residual stream may be narrowed or rotated: pre-norm blocks with RMS norms, gated MLPs, no biases
in the stream."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tracenas.errors import UserError

__all__ = ["PLAIN", "check_plain", "stream_norms", "with_weight"]

PLAIN = ("llama", "mistral", "qwen2", "qwen3")
"""Their `model_type`s; all of them name their parts as Llama does."""


def check_plain(rival: str, model: str, config: Mapping[str, Any]) -> None:
    """Refuse a model that is not such a decoder.

    Raises:
        UserError: naming the rival and what it takes.
    """
    kind = config.get("model_type")
    if kind not in PLAIN:
        raise UserError(
            f"rival {rival}: {model} is a '{kind}', whose residual stream it cannot cut: {', '.join(PLAIN)}"
        )
    if config.get("attention_bias") or config.get("mlp_bias"):
        raise UserError(f"rival {rival}: {model} has biases in its residual stream, which it cannot cut")


def stream_norms(model: Any) -> list[nn.Module]:
    """The norms that read the residual stream: two of every block, then the last one."""
    blocks = [(layer.input_layernorm, layer.post_attention_layernorm) for layer in model.model.layers]
    return [*(norm for pair in blocks for norm in pair), model.model.norm]


def with_weight(linear: nn.Linear, weight: Tensor) -> None:
    """Give a linear module another weight [rows, columns]."""
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    linear.out_features, linear.in_features = weight.shape
