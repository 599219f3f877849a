"""A heterogeneous checkpoint as a vLLM model: each block is the family's own vLLM block, built from its own widths.

Imported by vLLM alone (see `vllm_plugin`). A sub-block that `skip` names is never called and holds neither weights nor
KV cache; what runs is, with the residual stream r and the blocks' pending outputs h, per remaining sub-block

    r ← r + h;  h ← sub-block(norm(r))
"""

import inspect
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig  # type: ignore[import-not-found]
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM  # type: ignore[import-not-found]
from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer  # type: ignore[import-not-found]
from vllm.model_executor.models.utils import extract_layer_index  # type: ignore[import-not-found]

__all__ = ["TraceNASForCausalLM"]

# vLLM's Qwen2 takes the width of a head from the number of heads; its Llama reads `head_dim`, and `qkv_bias`.
_BLOCKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaDecoderLayer, {}),
    "mistral": (LlamaDecoderLayer, {}),
    "qwen2": (LlamaDecoderLayer, {"attention_bias": False, "qkv_bias": True}),
    "qwen3": (Qwen3DecoderLayer, {}),
}
_MODULES = {"attention": "self_attn", "mlp": "mlp"}


class _Block(nn.Module):
    """The family's block without its bypassed sub-blocks; the names of its parameters are the checkpoint's."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, index = vllm_config.model_config.hf_config, extract_layer_index(prefix)
        block_config = config.per_layer_config[index]
        kind, settings = _BLOCKS[config.base_model_type]
        for key, value in settings.items():
            setattr(block_config, key, value)
        window = _window(block_config, index)
        block = kind(config=block_config, prefix=prefix, **_arguments(kind, vllm_config, window))
        bypassed = {_MODULES[name] for name in getattr(block_config, "skip", ())}
        self.steps = []
        for norm, module in (("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")):
            if module in bypassed:
                continue
            self.add_module(norm, getattr(block, norm))
            self.add_module(module, getattr(block, module))
            self.steps.append((norm, module))
        if "self_attn" in bypassed:  # or vLLM would keep a KV cache for it
            layers = vllm_config.compilation_config.static_forward_context
            for name in [n for n in layers if n.startswith(f"{prefix}.self_attn")]:
                del layers[name]

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens × width: what is still to be added to the residual stream, and the stream."""
        for norm, module in self.steps:
            if residual is None:
                residual, hidden_states = hidden_states, getattr(self, norm)(hidden_states)
            else:
                hidden_states, residual = getattr(self, norm)(hidden_states, residual)
            inputs = (positions, hidden_states) if module == "self_attn" else (hidden_states,)
            hidden_states = getattr(self, module)(*inputs)
        return hidden_states, residual


def _window(config: Any, index: int) -> int | None:
    """The sliding window of a block, where blocks differ in it."""
    types = getattr(config, "layer_types", None)
    return config.sliding_window if types and types[index] == "sliding_attention" else None


def _arguments(kind: Any, vllm_config: VllmConfig, window: int | None) -> dict[str, Any]:
    """What a block of vLLM takes beside its configuration and its name: one of two manners."""
    if "vllm_config" in inspect.signature(kind.__init__).parameters:
        return {"vllm_config": vllm_config}
    return {
        "cache_config": vllm_config.cache_config,
        "quant_config": vllm_config.quant_config,
        "per_layer_sliding_window": window,
    }


class TraceNASForCausalLM(LlamaForCausalLM):  # type: ignore[misc]
    """Embedding, blocks, norm and head as in Llama, which Mistral, Qwen 2 and Qwen 3 share."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=_Block)
