"""Tiny random models as GGUF files, written with the gguf library by the rules of llama.cpp's converter."""

from pathlib import Path
from typing import Any

import numpy as np
from tiny import tiny_model

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
PLAIN = {"attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "max_window_layers": 4}
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def gguf_model(model_type: str = "llama", **changes: Any) -> Any:
    """A tiny model that GGUF can hold."""
    fits = {k: v for k, v in PLAIN.items() if model_type != "qwen2" or k not in ("attention_bias", "mlp_bias")}
    return tiny_model(model_type, **{**fits, "bos_token_id": 0, "vocab_size": 259, **changes})


def save_gguf(
    path: Path, model: Any, *, kind: str = "F32", architecture: str | None = None, **pairs: int | str
) -> Path:
    """Write a model with a byte-level tokenizer; matrices are quantised to `kind`, norms stay F32."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants
    from tokenizers import pre_tokenizers

    config = model.config
    name = architecture or config.model_type
    writer = GGUFWriter(path, name)
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(dim)
    writer.add_key_length(dim)
    writer.add_vocab_size(config.vocab_size)
    for key, value in pairs.items():
        text = key.replace("__", ".")
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(text, value)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["</s>", *letters, "th", "he"])
    writer.add_token_types([3] + [1] * (len(letters) + 2))
    writer.add_token_merges(["t h", "h e"])  # of one alone, transformers 5.17 makes letters
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for full, tensor in model.state_dict().items():
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        projection = full.split(".")[-2]
        if name == "llama" and projection in heads:
            data = _permuted(data, heads[projection])
        if data.ndim == 2 and kind != "F32":
            type_ = GGMLQuantizationType[kind]
            writer.add_tensor(_gguf_name(full), quants.quantize(data, type_), raw_dtype=type_)
        else:
            writer.add_tensor(_gguf_name(full), np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _permuted(weight: Any, heads: int) -> Any:
    """Rotary halves interleaved, as llama.cpp wants them."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def _gguf_name(full: str) -> str:
    stem, _, kind = full.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    _, _, index, inner = stem.split(".", 3)
    return f"blk.{index}.{NAMES[inner]}.{kind}"
