"""What config.json and the files say of an encoder–decoder model, before and when it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FLAN, tiny_model

from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source


def edited(folder: Path, **changes: Any) -> Path:
    """The configuration with some keys changed; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    tiny_model("t5").save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


@pytest.fixture
def own_head(tmp_path: Path) -> Path:
    tiny_model("t5", **FLAN).save_pretrained(tmp_path / "flan")
    return tmp_path / "flan"


def counted(folder: Path) -> tuple[int, int]:
    """Parameters outside the blocks by the description, and by the loaded model."""
    loaded = load(str(folder), device="cpu")
    inside = {id(p) for b in loaded.blocks() for p in loaded.model.get_submodule(b.path).parameters()}
    tables = sum(p.numel() for n, p in loaded.model.named_parameters() if "relative_attention_bias" in n)
    outside = sum(p.numel() for p in loaded.model.parameters() if id(p) not in inside) + tables
    return loaded.source.family.outside(loaded.source.config), outside


def test_the_names_of_other_families(tied: Path) -> None:
    source = open_source(str(tied))
    assert source.is_encoder_decoder
    found = [source.config[k] for k in ("hidden_size", "num_attention_heads", "intermediate_size", "head_dim")]
    assert found == [32, 4, 96, 12]


def test_positions_are_those_of_both_sides(tied: Path) -> None:
    assert open_source(str(tied)).positions == 2048
    assert open_source(str(edited(tied, n_positions=512))).positions == 1024


@pytest.mark.parametrize(
    "said",
    [
        {"tie_word_embeddings": True, "scale_decoder_outputs": False},  # as transformers 5 writes it
        {"tie_word_embeddings": False, "scale_decoder_outputs": None},  # as transformers 4 did
    ],
)
def test_a_head_of_its_own_is_counted(said: dict[str, Any], own_head: Path) -> None:
    described, found = counted(edited(own_head, **said))
    assert described == found


def test_a_tied_head_is_counted_once_also_where_it_is_not_scaled(tied: Path) -> None:
    for said in ({}, {"tie_word_embeddings": True, "scale_decoder_outputs": False}):
        described, found = counted(edited(tied, **said))
        assert described == found


def test_a_missing_head_is_missed(tied: Path) -> None:
    with pytest.raises(UserError, match="lm_head"):
        load(str(edited(tied, tie_word_embeddings=False)), device="cpu")


def test_a_head_that_config_json_does_not_know_is_refused(own_head: Path) -> None:
    edited(own_head, tie_word_embeddings=True, scale_decoder_outputs=None)
    with pytest.raises(UserError, match="correct tie_word_embeddings"):
        load(str(own_head), device="cpu")


def test_a_model_without_a_start_token_is_refused(tied: Path) -> None:
    with pytest.raises(UserError, match="decoder_start_token_id"):
        load(str(edited(tied, decoder_start_token_id=None)), device="cpu")


def test_a_table_of_position_biases_that_is_missing(tied: Path) -> None:
    tensors = load_file(tied / "model.safetensors")
    del tensors["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"relative_attention_bias\.weight is missing"):
        load(str(tied), device="cpu")


def test_bfloat16(own_head: Path) -> None:
    loaded = load(str(own_head), device="cpu", dtype="bf16")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
