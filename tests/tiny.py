"""Tiny random models of every registered family, in memory or on disk."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

SHAPE: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
"""Llama-3.1-8B's, for what needs no weights."""
OWN: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    "gemma": {"head_dim": 16, "attention_bias": True},
    "gemma2": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "attention_bias": True,
    },
    "gemma3_text": {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    },
    "olmo2": {"attention_bias": True},
    "gpt_neox": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "phi3": {"sliding_window": 6},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    # the second block has an ordinary MLP
    "qwen3_moe": {
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "mlp_only_layers": [1],
        "attention_bias": True,
        "norm_topk_prob": True,
    },
    "t5": {
        "d_model": 32,
        "d_kv": 12,
        "d_ff": 96,
        "num_layers": 4,
        "num_decoder_layers": 3,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 12,
        "decoder_start_token_id": 0,
    },
}
# T5 v1.1 and Flan-T5: a gated FFN, and a head that is not the embeddings.
FLAN: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
ENCODER_DECODER = {"t5"}


def tiny_config(model_type: str, **changes: Any) -> Any:
    """The configuration of a tiny model; what a family has no such setting for is left out."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known = {key: value for key, value in SHAPE.items() if hasattr(CONFIG_MAPPING[model_type], key)}
    return AutoConfig.for_model(model_type, **{**known, **OWN.get(model_type, {}), **changes})


def auto_class(model_type: str) -> Any:
    """What loads a family's model with its head."""
    return AutoModelForSeq2SeqLM if model_type.removeprefix("tracenas_") in ENCODER_DECODER else AutoModelForCausalLM


def logits_of(model: Any, tokens: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """Logits [B, T, V]; an encoder–decoder reads the tokens twice, as its encoder's and as its decoder's input."""
    if model.config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = tokens
    logits: torch.Tensor = model(tokens, **kwargs).logits
    return logits


def tiny_model(model_type: str, *, seed: int = 0, **changes: Any) -> Any:
    """A frozen random model whose biases and norms are random, too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(model_type, **changes)
        model = auto_class(model_type).from_config(config).eval().requires_grad_(False)
        if changes.get("tie_word_embeddings") is False and model_type in ENCODER_DECODER:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return capping(model)


def capping(model: Any) -> Any:
    """The model, with an attention that caps its scores where config.json says so; transformers 5.17 takes another."""
    if getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def angle_flops(counter: Any) -> int:
    """What a FlopCounterMode counted of rotary angles, which transformers 5.17 has as products of matrices."""
    counts = counter.get_flop_counts()
    return sum(sum(n.values()) for name, n in counts.items() if name.endswith("rotary_emb"))


def partly_kept(blocks: Any) -> dict[tuple[int, str], Any]:
    """Unit ids: block 0 without attention, block 1 with 32 channels."""
    kept: dict[tuple[int, str], Any] = {}
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            kept[index, sub.spec.name] = np.arange(sub.spec.units)
            if sub.spec.unit == "channels" and index == 1:
                kept[index, sub.spec.name] = np.arange(32)
            if sub.spec.unit == "heads" and index == 0:
                kept[index, sub.spec.name] = None
    return kept


def save_tiny(directory: Path, model_type: str, tokenizer: Any, **changes: Any) -> Path:
    """A tiny model with a tokenizer as a Hugging Face directory."""
    tiny_model(model_type, **changes).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_words(path: Path, count: int, seed: int = 0) -> None:
    """A text of random words."""
    rng = random.Random(seed)
    path.write_text(" ".join("".join(rng.choices("etaoinshrdlucmfw", k=rng.randint(2, 9))) for _ in range(count)))


def save_families(home: Path, families: Iterable[str], tokenizer: Any) -> Path:
    """Tiny models by family, and `text.txt`, a text of random words, in a directory."""
    for family in families:
        save_tiny(home / family, family, tokenizer)
    save_words(home / "text.txt", 3000)
    return home
