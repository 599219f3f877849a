"""The families' own architectures of llama.cpp: all blocks alike, none without attention or MLP.

Gemma's norms multiply by 1 + w: the file holds 1 + w. Gemma 2 and 3 scale scores by query_pre_attn_scalar^(-1/2),
llama.cpp by head_dim^(-1/2): where these differ, q's weights (with q's norm: the norm's) carry the quotient.
"""

from dataclasses import dataclass
from typing import Any

from tracenas.exporters.gguf.layouts.layout import (
    ATTENTION_NAMES,
    MLP_NAMES,
    QK_NORM_NAMES,
    Change,
    FileDraft,
    Layout,
    Tensor,
    block_tensors,
    common_metadata,
    first_reason,
    interleaved,
    outer_tensors,
    window_note,
)
from tracenas.exporters.gguf.model import Decoder
from tracenas.exporters.gguf.weights import Array, Weights

__all__ = ["ARCHITECTURES", "STOCK", "GgufArchitecture", "family_objection"]

# By the number of norms in a block: before the sub-blocks, or on both sides of them.
_NORMS = {
    2: ("attn_norm", "ffn_norm"),
    4: ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"),
}
# llama.cpp takes these for the 27B models, which scale scores by (hidden / heads)^(-1/2).
_DEPTH_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class GgufArchitecture:
    """What llama.cpp's architecture of a family has.

    Args:
        interleaved: whether q and k are permuted to interleaved pairs.
        biases: which projections may have one.
        unit_norms: whether norms multiply by 1 + w.
        windows: whether it has sliding windows, per block.
        full_width: whether heads · head_dim must be the hidden width.
        tied: whether the head must be the embeddings.
    """

    name: str
    interleaved: bool = False
    biases: frozenset[str] = frozenset()
    unit_norms: bool = False
    windows: bool = False
    full_width: bool = False
    tied: bool = False
    factors: bool = False
    activation: str = "silu"


_QKV, _GELU = frozenset("qkv"), "gelu_pytorch_tanh"
_LLAMA = GgufArchitecture("llama", interleaved=True, biases=frozenset({*"qkvo", "mlp"}), factors=True)
ARCHITECTURES: dict[str, GgufArchitecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GgufArchitecture("qwen2", biases=_QKV, full_width=True),
    "qwen3": GgufArchitecture("qwen3", biases=_QKV),
    "gemma": GgufArchitecture("gemma", biases=_QKV, unit_norms=True, tied=True, activation=_GELU),
    "gemma2": GgufArchitecture("gemma2", biases=_QKV, unit_norms=True, windows=True, tied=True, activation=_GELU),
    "gemma3_text": GgufArchitecture("gemma3", biases=_QKV, unit_norms=True, windows=True, activation=_GELU),
}


def _objection(model: Decoder) -> str:
    """Blocks that differ, and what the family's architecture in llama.cpp does not have."""
    if not model.uniform:
        return "its blocks are all alike, the model's are not (search --strategy uniform finds such)"
    return family_objection(model)


def family_objection(model: Decoder) -> str:
    """What the family's architecture in llama.cpp does not have, for a model whose blocks are all alike."""
    arch, config = ARCHITECTURES[model.family], model.config
    name, extra = f"llama.cpp's {arch.name}", model.biases - arch.biases
    full = model.blocks[0].heads * model.head_dim == model.hidden
    uncapped = arch.name == "gemma2" and not (config.attn_logit_softcapping and config.final_logit_softcapping)
    return first_reason(
        (
            (bool(extra), f"{name} has no bias of {', '.join(sorted(extra))}"),
            (arch.full_width and not full, f"{name} wants heads times head_dim = {model.hidden}"),
            (arch.tied and not model.tied, f"{name} has the embeddings for a head"),
            (model.activation != arch.activation, f"{name} has {arch.activation}, the model {model.activation}"),
            (not arch.factors and model.ropes[0].factors() is not None, f"{arch.name} has no rope factors (llama3)"),
            (uncapped, "llama.cpp's gemma2 caps scores and logits always"),
            (bool(getattr(config, "use_bidirectional_attention", False)), "attention is causal in llama.cpp"),
        )
    )


def _draft(model: Decoder, weights: Weights) -> FileDraft:
    """One shape for all blocks."""
    arch = ARCHITECTURES[model.family]
    before, behind = outer_tensors(model, weights, _one_more if arch.unit_norms else None)
    inner = [tensor for i in range(len(model.blocks)) for tensor in _block(arch, model, weights, i)]
    metadata = common_metadata(arch.name, model, per_block=False)
    if arch.windows:
        metadata |= _windowed(arch, model)
    return FileDraft(arch.name, metadata, (*before, *inner, *behind), () if arch.windows else window_note(model))


def _block(arch: GgufArchitecture, model: Decoder, weights: Weights, index: int) -> list[Tensor]:
    sources = [norm for norms in model.norms for norm in norms]
    norms = {**dict(zip(sources, _NORMS[len(sources)], strict=True)), **QK_NORM_NAMES}
    changes: dict[str, Change | None] = dict.fromkeys(norms.values(), _one_more) if arch.unit_norms else {}
    if arch.interleaved:
        changes |= dict.fromkeys(("attn_q", "attn_k"), interleaved(model.head_dim))
    scale, scaled = _score_scale(arch, model), "attn_q_norm" if model.qk_norm else "attn_q"
    if scale != 1.0:
        changes[scaled] = _then_times(changes.get(scaled), scale)
    return block_tensors(weights, index, {**norms, **ATTENTION_NAMES, **MLP_NAMES}, changes)


def _score_scale(arch: GgufArchitecture, model: Decoder) -> float:
    """The family's scale of scores over the one that llama.cpp applies."""
    scalar = getattr(model.config, "query_pre_attn_scalar", None)
    if scalar is None or arch.name not in _DEPTH_27B:
        return 1.0
    large = len(model.blocks) == _DEPTH_27B[arch.name]
    theirs = model.hidden // model.blocks[0].heads if large else model.head_dim
    return float((theirs / float(scalar)) ** 0.5)


def _windowed(arch: GgufArchitecture, model: Decoder) -> dict[str, Any]:
    """Which blocks have a window, and the rotary embedding of those."""
    values: dict[str, Any] = {"context_length": model.positions}
    if model.window is not None:
        values["attention.sliding_window"] = model.window
        values["attention.sliding_window_pattern"] = [w is not None for w in model.windows]
        values["rope.freq_base_swa"] = model.ropes[1].base
    if arch.name == "gemma2":
        values["attn_logit_softcapping"] = float(model.config.attn_logit_softcapping)
    if cap := getattr(model.config, "final_logit_softcapping", None):
        values["final_logit_softcapping"] = float(cap)
    return {f"{arch.name}.{key}": value for key, value in values.items()}


def _one_more(weight: Array) -> Array:
    return weight + 1


def _then_times(change: Change | None, factor: float) -> Change:
    return lambda tensor: (tensor if change is None else change(tensor)) * factor


STOCK = Layout("stock", _objection, _draft)
