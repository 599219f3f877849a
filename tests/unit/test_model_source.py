"""What a model directory must hold, and how what is wrong with it is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model

from tracenas.errors import UserError
from tracenas.models.loading import load
from tracenas.models.source import open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def edited(folder: Path, **changes: Any) -> str:
    """The configuration with some keys changed; None removes one."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": None}, r"has no 'hidden_size', which 'llama' needs"),
        ({"vocab_size": None}, r"has no 'vocab_size', which 'llama' needs"),
        ({"hidden_size": "wide"}, r"is none of 'llama': .*'wide'"),
        ({"num_attention_heads": [4, 4]}, r"is none of 'llama'"),
        ({"per_layer_config": {"first": {}}}, r"is none of 'llama': .*'first'"),
        ({"num_hidden_layers": 0}, r"says that it has no blocks"),
        ({"num_hidden_layers": 200_000_000}, r"is none of 'llama': num_hidden_layers is 200,000,000"),
        ({"num_hidden_layers": "200000000"}, r"is none of 'llama': num_hidden_layers is 200,000,000"),
        ({"intermediate_size": 10**12}, r"is none of 'llama': mlp\.gate_proj would be 1,000,000,000,000"),
        ({"hidden_size": 10**12}, r"is none of 'llama'"),
        ({"num_attention_heads": 10**12}, r"is none of 'llama'"),
        ({"num_attention_heads": 10**12, "head_dim": 1, "num_key_value_heads": 1}, r"is none of 'llama'"),
        ({"num_key_value_heads": 10**12}, r"is none of 'llama'"),
        ({"num_attention_heads": -4}, r"is none of 'llama'"),
        ({"head_dim": 10**12}, r"is none of 'llama'"),
    ],
)
def test_a_configuration_that_describes_no_model(changes: dict[str, Any], told: str, folder: Path) -> None:
    with pytest.raises(UserError, match=f"config.json {told}"):
        open_source(edited(folder, **changes))


@pytest.mark.parametrize("text", ["{", '{"version": "1.0", "model": {}}', "[]"])
def test_a_damaged_tokenizer_is_told_and_not_taken_for_none(text: str, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read: \S"):
        load(str(folder), device="cpu")


def test_a_model_without_a_tokenizer_loads(folder: Path) -> None:
    assert load(str(folder), device="cpu").tokenizer is None


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "no JSON"])
def test_a_damaged_index_is_refused_when_the_model_is_loaded(text: str, tmp_path: Path) -> None:
    tiny_model("t5").save_pretrained(tmp_path / "t5")
    place = edited(tmp_path / "t5", scale_decoder_outputs=False)
    (tmp_path / "t5" / "model.safetensors.index.json").write_text(text)
    assert not open_source(place).config["tie_word_embeddings"]
    with pytest.raises(UserError):
        load(place, device="cpu")
