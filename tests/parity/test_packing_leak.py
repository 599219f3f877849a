"""Documents packed into one window do not see each other: their logits are those of each document alone."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tracenas.data.packing import pack
from tracenas.families import Options, family_of
from tracenas.models import heterogeneous
from tracenas.models.checkpoint import save_pruned

pytestmark = pytest.mark.parity

TINY: dict[str, Any] = {
    "vocab_size": 257,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 6}, "qwen3": {"head_dim": 16}}
DOCUMENTS = ["one small document", "another, which is a little longer", "x", "the last of them all, cut off"]
WINDOW = 80


def dense(model_type: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**TINY, **FAMILIES[model_type]})
    return AutoModelForCausalLM.from_config(config).eval()


def heterogeneous_path(model: Any, path: Path) -> Path:
    """Block 0 without attention, block 1 narrower."""
    family = family_of(model.config.to_dict())
    blocks = family.blocks(model.config.to_dict(), Options())
    kept: dict[tuple[int, str], Any] = {}
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            kept[index, sub.spec.name] = np.arange(sub.spec.units)
            if sub.spec.unit == "channels" and index == 1:
                kept[index, sub.spec.name] = np.arange(32)
            if sub.spec.unit == "heads" and index == 0:
                kept[index, sub.spec.name] = None
    assert not save_pruned(model, None, family, blocks, kept, path).stock
    return path


def check_no_leak(model: Any, tokenizer: Any) -> None:
    window = next(pack(DOCUMENTS, tokenizer, WINDOW, eos=0))
    ids, positions = torch.from_numpy(window.input_ids)[None], torch.from_numpy(window.position_ids)[None]
    starts = [*(positions[0] == 0).nonzero()[:, 0].tolist(), WINDOW]
    assert len(starts) == 5
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        joined = model(input_ids=ids, use_cache=False).logits[0]
        for start, end in itertools.pairwise(starts):
            alone = model(input_ids=ids[:, start:end], use_cache=False).logits[0]
            assert (packed[start:end] - alone).abs().max() < 1e-5
    assert (packed - joined)[starts[1] :].abs().max() > 1e-2, "the check could not fail"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_stock_model(model_type: str, attention: str, tokenizer: Any) -> None:
    model = dense(model_type)
    model.set_attn_implementation(attention)
    check_no_leak(model, tokenizer)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_heterogeneous_model(attention: str, tokenizer: Any, tmp_path: Path) -> None:
    heterogeneous.register()
    path = heterogeneous_path(dense("llama"), tmp_path / "pruned")
    check_no_leak(AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention).eval(), tokenizer)


def test_a_mask_of_ones_leaks(tokenizer: Any) -> None:
    """Why batches of windows have no attention mask."""
    window = next(pack(DOCUMENTS, tokenizer, WINDOW, eos=0))
    ids, positions = torch.from_numpy(window.input_ids)[None], torch.from_numpy(window.position_ids)[None]
    model = dense("llama")
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        masked = model(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).logits
    assert (packed - masked).abs().max() > 1e-2
