"""Low-rank adapters on all linear layers but the head, merged into a plain model when training has ended."""

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracenas.errors import UserError
from tracenas.recovery.zeros import linear_weights

__all__ = ["adapter_file", "add_adapters", "merged"]


def add_adapters(model: Any, *, rank: int, alpha: float, dropout: float, seed: int, keep_zeros: bool = False) -> Any:
    """A peft model: W + (α / r) B A on every linear layer but the head; only A and B train.

    B starts at zero, A by Kaiming's rule from its own generator. With `keep_zeros`, B A counts only where W is
    not zero, in training as after merging.

    Raises:
        UserError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError("--method lora needs peft: pip install peft") from error
    names = [name.removesuffix(".weight") for name in linear_weights(model)]
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=names, task_type="CAUSAL_LM", bias="none"
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a deprecated name whether it checkpoints activations.
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for layer in _layers(adapted):
        a, b = _matrices(layer)
        fresh = torch.empty(a.shape)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            a.copy_(fresh)
            b.zero_()
        if keep_zeros and bool((layer.base_layer.weight == 0).any()):
            _mask(layer)
    return adapted


def merged(model: Any, weights: Mapping[str, Tensor], keep_zeros: bool) -> Any:
    """The plain model with adapters' weights added to it.

    Args:
        model: what `add_adapters` made.
        weights: of the adapters, as a checkpoint holds them.
    """
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(model, dict(weights))
    adapted = [layer.base_layer for layer in _layers(model)] if keep_zeros else []
    masks = [module.weight != 0 for module in adapted]
    plain = model.merge_and_unload()
    with torch.no_grad():
        for module, mask in zip(adapted, masks, strict=True):
            module.weight.mul_(mask)
    return plain


def adapter_file(checkpoint: Path) -> Path:
    """Where peft put the adapters of a checkpoint."""
    return checkpoint / "adapter_model.safetensors"


def _layers(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def _mask(layer: Any) -> None:
    """Let the layer add B A only where its own weight is not zero."""
    nonzero = layer.base_layer.weight.detach() != 0

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        a, b = _matrices(layer)
        delta = (b @ a) * layer.scaling["default"] * nonzero.to(b.device)
        added: Tensor = F.linear(layer.lora_dropout["default"](x).to(delta.dtype), delta)
        result: Tensor = layer.base_layer(x)
        return result + added.to(result.dtype)

    layer.forward = forward
