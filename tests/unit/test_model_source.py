"""What a model directory must hold, and how what is wrong with it is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model

from tracenas.errors import UserError
from tracenas.families import FAMILIES
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.headers import read_header
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource, open_source


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
        ({"num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16, "head_dim": 1}, r"is none of 'llama'"),
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


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"weight_map": 3}',
        "no JSON",
        '{"metadata": {}, "weight_map": {"a": "' + "x" * 300 + '"}}',
        "[" * 100_000,
        "9" * 5000,
    ],
)
def test_a_damaged_index_is_refused(text: str, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(text)
    open_source(str(folder))  # an old one: transformers reads model.safetensors first
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="index.json"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["pytorch_model.bin", "training_args.bin"], "pytorch_model.bin is a pickle"),
        (["a.gguf"], "a.gguf is not what transformers reads here"),
        (["consolidated.safetensors"], "consolidated.safetensors is not what"),
        (["model.fp16.safetensors"], "model.fp16.safetensors is not what"),
        (["model-00001-of-00002.safetensors"], "is a shard, but there is no model.safetensors.index.json"),
    ],
)
def test_weights_in_another_form_are_refused_when_the_model_is_opened(
    files: list[str], told: str, folder: Path
) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    open_source(str(folder))  # a configuration alone can be planned
    for name in files:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=f"no model.safetensors; only safetensors is accepted .*{told}"):
        open_source(str(folder))


def test_a_link_that_leads_nowhere_is_told(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../blobs/0f3a")
    with pytest.raises(UserError, match=r"model\.safetensors is a link to \.\./blobs/0f3a, which is not there"):
        open_source(str(folder))


def test_an_empty_list_of_eos_tokens_names_none() -> None:
    source = ModelSource("m", Path("m"), {"eos_token_id": []}, FAMILIES.get("llama"))
    with pytest.raises(UserError, match="neither tokenizer nor config.json names an EOS token"):
        _ = LoadedModel(source, None, None, BaseFiles(Path())).eos


def test_whatever_else_lies_beside_the_weights_is_not_read(folder: Path) -> None:
    expected = load(str(folder), device="cpu").model.lm_head.weight
    for name in (
        "pytorch_model.bin",
        "consolidated.safetensors",
        "._model.safetensors",
        "model-00001-of-00009.safetensors",
    ):
        (folder / name).write_bytes(b"nothing")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    assert load(str(folder), device="cpu").model.lm_head.weight.equal(expected)


@pytest.mark.parametrize("absent", [1, 2])
def test_shards_that_are_missing_are_named(absent: int, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {f"model-0000{i}-of-00002.safetensors": names[i - 1 :: 2] for i in (1, 2)}
    for file, part in halves.items():
        save_file({n: weights[n] for n in part}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: file for file, part in halves.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    open_source(str(folder))
    for file in list(halves)[:absent]:
        (folder / file).unlink()
    with pytest.raises(UserError, match=rf"{absent} of 2 shards are missing, first: model-00001-of-00002"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"rms_norm_eps": "1e-05"}, "rms_norm_eps"), ({"layer_types": ["full_attention"] * 3}, "layer_types")],
)
def test_what_transformers_does_not_accept_is_told_in_its_words(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=f"model .*transformers does not accept its config.json: .*{told}"):
        load(edited(folder, **changes), device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_weight_that_is_no_finite_number(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"tensor model.layers.1.mlp.down_proj.weight holds NaN or infinities in fp16"):
        load(str(folder), device="cpu", dtype="fp16")
    if value == 1e5:
        assert load(str(folder), device="cpu", dtype="fp32").model is not None


@pytest.mark.parametrize("same", [True, False])
def test_a_tensor_in_two_shards(folder: Path, same: bool) -> None:
    """transformers takes the last one, whatever the index says."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    norm = tensors["model.norm.weight"]
    save_file(tensors, folder / "a.safetensors", metadata={"format": "pt"})
    save_file({"model.norm.weight": norm if same else norm + 1}, folder / "b.safetensors", metadata={"format": "pt"})
    index = {
        "metadata": {},
        "weight_map": dict.fromkeys(tensors, "a.safetensors") | {"model.norm.weight": "b.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if same:
        assert load(str(folder), device="cpu").model is not None
    else:
        with pytest.raises(UserError, match=r"model.norm.weight is in a.safetensors and b.safetensors, and not the"):
            open_source(str(folder))


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["x" * 200] * 30), "a\0b"])
def test_a_name_that_no_file_can_have(name: str) -> None:
    with pytest.raises(UserError, match=f"model {name[:2]}"):
        open_source(name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.gguf"])
def test_a_pointer_of_git_lfs_is_told(folder: Path, name: str) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=f"{name}: .*git lfs pull"):
        open_source(str(folder / name if name.endswith(".gguf") else folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 1000},
        {"vocab_size": 10**15},
        {"hidden_size": 1 << 20},
        {"intermediate_size": 1 << 20},
    ],
)
def test_a_configuration_of_more_than_the_files_hold_is_refused(changes: dict[str, Any], folder: Path) -> None:
    with pytest.raises(UserError, match=r"parameters by config.json, 0?[\d,]+ in its files"):
        open_source(edited(folder, **changes))


def test_more_units_than_any_model_has_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="heads and channels; accepted: up to 134,217,728"):
        open_source(edited(folder, num_hidden_layers=1000, intermediate_size=1 << 19))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.int8, "I8"), (torch.uint8, "U8")])
def test_weights_that_are_quantised_without_a_word_in_the_configuration(
    dtype: torch.dtype, name: str, folder: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"] = weights["model.layers.0.mlp.up_proj.weight"].to(dtype)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"up_proj.weight is of type {name}: the weights are quantised"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}, "8 bytes for F32"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "no place or type"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, -8]}}, "no place or type"),
        ({"a": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 2**64]}}, "announced"),
        ({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, "tensor b begins at byte"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "tensor a begins at byte"),
        ({"a": {"dtype": "F32", "shape": "22", "data_offsets": [0, 8]}}, "no place or type"),
        ([], "damaged safetensors file"),
    ],
)
def test_a_safetensors_header_that_does_not_fit_its_file(header: Any, told: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match=told):
        read_header(path)


def test_a_safetensors_header_longer_than_the_library_reads(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write((1 << 33).to_bytes(8, "little"))
        file.truncate(1 << 34)
    with pytest.raises(UserError, match="a header of 8,589,934,592 bytes"):
        read_header(path)


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
