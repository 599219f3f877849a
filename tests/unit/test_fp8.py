"""FP8 checkpoints as models: what is read is what the scales say, and what has none is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import save_tiny, tiny_model

from tracenas.commands.plan.command import plan
from tracenas.config import PlanConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.headers import stored_tensors
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def quantise(folder: Path, block: tuple[int, int] | None, dtype: str | None = "bfloat16") -> dict[str, torch.Tensor]:
    """Quantise the projections of a model on disk; returns its weights as they are to be read."""
    exact, stored = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = exact[name] = weight.bfloat16()
            continue
        rows, columns = block or weight.shape
        scale = torch.empty(-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
        stored[name], exact[name] = torch.empty_like(weight, dtype=torch.float8_e4m3fn), torch.empty_like(weight)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                part = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
                scale[i, j] = weight[part].abs().max() / 448
                stored[name][part] = (weight[part] / scale[i, j]).to(torch.float8_e4m3fn)
                exact[name][part] = stored[name][part].float() * scale[i, j]
        stored[name + "_scale_inv"] = scale if block else scale[0, 0]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"dtype": dtype, "quantization_config": FP8 | {"weight_block_size": block}}
    (folder / "config.json").write_text(json.dumps(config))
    return exact


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    return save_tiny(tmp_path / "model", "llama", tokenizer)


@pytest.mark.parametrize("block", [(32, 32), (20, 24), (128, 128), None])  # blocks that are cut off, and one for all
@pytest.mark.parametrize("dtype", ["bfloat16", None, "float32"])
def test_weights_are_the_scaled_ones(block: tuple[int, int] | None, dtype: str | None, folder: Path) -> None:
    exact = quantise(folder, block, dtype)
    source = open_source(str(folder))
    assert "dequantised to " in (source.origin or "")
    loaded = load(source, device="cpu", dtype="fp32")
    kept = getattr(torch, dtype or "bfloat16")
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, exact[name].to(kept).float()), name
    assert loaded.source.config["dtype"] == (dtype or "bfloat16")
    assert loaded.tokenizer.encode("ab") == load(str(folder), device="cpu").tokenizer.encode("ab")


def test_the_licence_goes_with_the_weights(folder: Path, cache: Path) -> None:
    quantise(folder, None)
    for name in ("LICENSE", "NOTICE"):
        (folder / name).write_text(f"the {name} of the base")
    load(str(folder), device="cpu")
    for name in ("LICENSE", "NOTICE"):
        (copy,) = cache.rglob(name)
        assert copy.read_text() == f"the {name} of the base"


def test_it_is_what_transformers_reads(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    quantise(folder, (32, 32))
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=FineGrainedFP8Config(dequantize=True)
    )
    ours = load(str(folder), device="cpu", dtype="bf16").model
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_plan_reads_headers_alone_and_the_model_is_converted_once(
    folder: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tracenas")
    quantise(folder, (32, 32))
    found = plan(PlanConfig(model=str(folder), no_timing=True, proxy="phi", params="75%", samples=1, seq_len=8))
    assert found.base == sum(p.numel() for p in tiny_model("llama").parameters())
    assert not list(cache.iterdir())
    load(str(folder), device="cpu")
    assert "converted once" in caplog.text
    caplog.clear()
    load(str(folder), device="cpu")
    assert caplog.text == ""
    source = open_source(str(folder))
    assert {t.dtype for t in stored_tensors(source.path or folder).values()} == {"BF16"}
    assert "quantization_config" not in source.config


def _without_scale(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name + "_scale_inv"]


def _renamed(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name.removesuffix("weight") + "weight_scale"] = tensors.pop(name + "_scale_inv")


def _other_grid(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name + "_scale_inv"] = torch.ones(3, 5)


def _bytes(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name + "_scale_inv"] = tensors[name + "_scale_inv"].to(torch.uint8)


def _other_fp8(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = tensors[name].float().to(torch.float8_e5m2)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_without_scale, "has no '_scale_inv'"),
        (_renamed, "has no '_scale_inv'"),
        (_other_grid, r"has scales of shape \[3, 5\]"),
        (_bytes, "has scales of type U8"),
        (_other_fp8, "of type F8_E5M2"),
    ],
)
def test_what_cannot_be_dequantised_is_refused_when_it_is_opened(damage: Any, told: str, folder: Path) -> None:
    quantise(folder, (32, 32))
    tensors = load_file(folder / "model.safetensors")
    damage(tensors, "model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"up_proj.weight .*{told}"):
        open_source(str(folder))


@pytest.mark.parametrize("block", [[128], [0, 128], ["a", 3], "128x128", 128])
def test_blocks_that_are_none_are_refused(block: Any, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {
        "quantization_config": FP8 | {"weight_block_size": block}
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="weight_block_size is"):
        open_source(str(folder))


def test_a_changed_file_is_converted_anew(folder: Path) -> None:
    quantise(folder, (32, 32))
    before = load(str(folder), device="cpu").source.path
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    after = load(str(folder), device="cpu")
    assert after.source.path != before
    assert torch.equal(after.model.model.norm.weight, tensors["model.norm.weight"].float())
