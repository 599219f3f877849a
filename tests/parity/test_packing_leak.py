"""Documents packed into one window do not see each other: their logits are those of each document alone."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, partly_kept
from transformers import AutoConfig, AutoModelForCausalLM

import tracenas
from tracenas.data.packing import pack
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.writing import save_pruned

pytestmark = pytest.mark.parity

TINY: dict[str, Any] = {**SHAPE, "intermediate_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 128}
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 6}, "qwen3": {"head_dim": 16}}
DOCUMENTS = ["one small document", "another, which is a little longer", "x", "the last of them all, cut off"]
WINDOW = 80


def dense(model_type: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**TINY, **FAMILIES[model_type]})
    return AutoModelForCausalLM.from_config(config).eval()


def heterogeneous_path(model: Any, path: Path) -> Path:
    """Block 0 without attention, block 1 narrower."""
    family = config_family(model.config.to_dict())
    blocks = family.blocks(model.config.to_dict(), Options())
    assert not save_pruned(model, None, family, blocks, partly_kept(blocks), path).stock
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
    tracenas.register()
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
