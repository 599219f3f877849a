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
    (tmp_path / "t5" / "model.safetensors").unlink()  # transformers would read that first
    (tmp_path / "t5" / "model.safetensors.index.json").write_text(text)
    assert not open_source(place).config["tie_word_embeddings"]
    with pytest.raises(UserError):
        load(place, device="cpu")


@pytest.mark.parametrize(
    ("quantised", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}, "bitsandbytes"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "modelopt"),
        ({"quantization_config": {}}, "a method that quantization_config does not name"),
        ({"quantization_config": ["gptq"]}, "a method that quantization_config does not name"),
        ({"compression_config": {"quant_method": "sparseml"}}, "sparseml"),
        ({"text_config": {"quantization_config": {"quant_method": "torchao"}}}, "torchao"),
    ],
)
def test_quantised_weights_are_refused_before_any_work(quantised: dict[str, Any], method: str, folder: Path) -> None:
    with pytest.raises(UserError, match=rf"its weights are quantised \({method}\).*accepted: "):
        open_source(edited(folder, **quantised))


def test_a_quantisation_of_null_is_none(folder: Path) -> None:
    place = edited(folder)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": None}
    (folder / "config.json").write_text(json.dumps(config))
    load(place, device="cpu")


def test_an_adapter_beside_a_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    with pytest.raises(UserError, match="a PEFT adapter .* lies beside the model.*merge it"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"adapter_config.json": '{"base_model_name_or_path": "org/base"}'}, "but a PEFT adapter of org/base"),
        ({"adapter_config.json": "[]"}, "but a PEFT adapter of a model"),
        ({"snapshots/0a1b/config.json": "{}"}, "it is a hub cache: name .*0a1b"),
        ({"model-Q4_K_M.gguf": ""}, "but GGUF files: name one, such as .*model-Q4_K_M.gguf"),
        ({"params.json": "{}", "consolidated.00.pth": ""}, "in its maker's own format"),
        ({"checkpoint-500/config.json": "{}"}, "holds no config.json; .*checkpoint-500 does"),
        ({"notes.txt": ""}, "holds no config.json$"),
    ],
)
def test_a_directory_without_a_model_is_told_what_it_holds(files: dict[str, str], told: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=told):
        open_source(str(tmp_path))


def test_a_distributed_checkpoint_beside_a_model_is_refused(folder: Path) -> None:
    (folder / "shard-00000-model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="shard-00000-model-00001-of-00002.safetensors is of a distributed checkpoint"):
        open_source(str(folder))


@pytest.mark.parametrize("adapter", [True, False])
def test_a_hub_model_with_an_adapter_beside_it_is_refused(
    adapter: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(name: str, file: str) -> str:
        if file == "adapter_config.json" and not adapter:
            raise LocalEntryNotFoundError(file)
        return str(folder / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    if adapter:
        with pytest.raises(UserError, match="model org/name: a PEFT adapter"):
            open_source("org/name")
    else:
        assert open_source("org/name").path is None
