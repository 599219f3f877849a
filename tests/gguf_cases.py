"""Tiny random checkpoints of differing blocks, for what is exported from them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import tiny_model

from tracenas.families import Options, config_family
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.shipped.heterogeneous import register

# Families as llama.cpp knows them: other biases than tests of pruning have.
PLAIN: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "sliding_window": None, "tie_word_embeddings": False},
    "qwen3": {"attention_bias": False, "tie_word_embeddings": True},
    "gemma": {"attention_bias": False},
    "gemma2": {"attention_bias": False},
    "gemma3_text": {},
}
Counts = Sequence[tuple[int, int]]


def checkpoint(
    out: Path, family: str, counts: Counts, *, seed: int = 0, options: Options | None = None, **changes: Any
) -> Path:
    """A random model of four blocks cut to `counts` of units (heads or KV groups, channels), as `prune` writes it."""
    model = tiny_model(family, seed=seed, **{**PLAIN[family], **changes})
    described = config_family(model.config.to_dict())
    blocks = described.blocks(model.config.to_dict(), options or Options())
    rng = np.random.default_rng(seed)
    kept = {}
    for index, (block, row) in enumerate(zip(blocks, counts, strict=True)):
        for sub, count in zip(block.sub_blocks, row, strict=True):
            groups = np.arange(sub.spec.units).reshape(sub.groups, -1)
            each = [np.sort(rng.permutation(group)[: count // sub.groups]) for group in groups]
            kept[index, sub.spec.name] = np.concatenate(each) if count else None
    save_pruned(model, None, described, blocks, kept, out)
    register(family)
    return out


def with_tokenizer(directory: Path, source: Path) -> Path:
    """The tokenizer of another directory, copied."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((source / name).read_bytes())
    return directory


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata, and tensors as float32 with rows first."""
    import gguf

    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    return metadata, tensors


def stored(directory: Path) -> dict[str, np.ndarray]:
    """The checkpoint's tensors, float32."""
    from safetensors.torch import load_file

    return {
        name: tensor.to(torch.float32).numpy() for name, tensor in load_file(directory / "model.safetensors").items()
    }
