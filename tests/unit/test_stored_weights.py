"""Weights are cut from the base's files, bit for bit, in the types they have there, whatever they are computed in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import partly_kept, tiny_model

from tracenas.errors import CheckFailed
from tracenas.models.checkpoints.configuration import empty_model, new_places
from tracenas.models.checkpoints.headers import stored_tensors
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.stored import as_loaded
from tracenas.models.checkpoints.writing import Draft, save_pruned
from tracenas.models.checkpoints.written import check_written
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.space.architecture import Architecture, Layer

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "fp64": torch.float64, "bf16": torch.bfloat16}


def saved(path: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **kwargs: Any) -> Path:
    tiny_model(family).to(dtype).save_pretrained(path, **kwargs)
    return path


def edited(path: Path, **values: Any) -> Path:
    """config.json with other values; None removes a key."""
    config = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return path


def cut(loaded: LoadedModel, out: Path, kept: Mapping[Any, Any] | None = None, **kwargs: Any) -> Draft:
    blocks = loaded.blocks()
    kept = partly_kept(blocks) if kept is None else kept
    tensors = loaded.tensors()
    return save_pruned(loaded.model, None, loaded.source.family, blocks, kept, out, tensors=tensors, **kwargs)


def contents(path: Path) -> dict[str, torch.Tensor]:
    """What a directory's files hold, by the model's names."""
    config = json.loads((path / "config.json").read_text())
    return {name: entry.make() for name, entry in as_loaded(empty_model(config), stored_tensors(path)).items()}


def assert_cut_from(base: Path, draft: Draft, loaded: LoadedModel) -> None:
    """Tensors whose shape stayed are the base's, and cut ones have only numbers of the base's, all in its types."""
    theirs, ours = contents(base), contents(draft.path)
    layers = [f"{b.path}." for b in loaded.blocks()]
    places = new_places(loaded.blocks(), draft.layers)
    assert ours
    for name, tensor in ours.items():
        new = next((f"{p}." for p in places if p is not None and name.startswith(f"{p}.")), None)
        old = name if new is None else layers[places.index(new[:-1])] + name.removeprefix(new)
        assert tensor.dtype == theirs[old].dtype
        if tensor.shape == theirs[old].shape:
            assert torch.equal(tensor, theirs[old])
        else:
            assert torch.isin(tensor, theirs[old]).all()


@pytest.mark.parametrize("kind", ["fp32", "fp16", "fp64"])
@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_what_is_computed_in_bf16_is_written_as_it_was_stored(tmp_path: Path, kind: str, shards: str) -> None:
    base = saved(tmp_path / "m", dtype=DTYPES[kind], max_shard_size=shards)
    loaded = load(str(base), device="cpu", dtype="bf16")
    draft = cut(loaded, tmp_path / "p")
    assert draft.config["dtype"] == str(DTYPES[kind]).removeprefix("torch.")
    assert_cut_from(base, draft, loaded)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_neox", "gemma2", "phi3", "t5"])
def test_every_way_that_files_name_and_shape_tensors(tmp_path: Path, family: str) -> None:
    base = saved(tmp_path / "m", family)
    loaded = load(str(base), device="cpu", dtype="bf16")
    draft = cut(loaded, tmp_path / "p")
    assert not draft.stock
    assert_cut_from(base, draft, loaded)
    again = load(str(draft.path), device="cpu", dtype="bf16")
    whole = {k: v if v is not None and len(v) else None for k, v in partly_kept(again.blocks()).items()}
    assert_cut_from(draft.path, cut(again, tmp_path / "again", whole), again)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_a_model_that_was_saved_without_its_head(tmp_path: Path, family: str) -> None:
    """As embedding models are published: names without `model.`, the head is the embeddings."""
    path = tmp_path / "base"
    tiny_model(family, tie_word_embeddings=True).model.save_pretrained(path)
    assert "embed_tokens.weight" in load_file(path / "model.safetensors")
    loaded = load(str(path), device="cpu")
    draft = cut(loaded, tmp_path / "cut")
    assert_cut_from(path, draft, loaded)
    assert "model.embed_tokens.weight" in load_file(draft.path / "model.safetensors")


def test_a_stock_mixture_of_experts(tmp_path: Path) -> None:
    base = saved(tmp_path / "m", "mixtral")
    loaded = load(str(base), device="cpu", dtype="bf16")
    kept = {
        (i, s.spec.name): torch.arange(s.spec.units).numpy()
        for i, b in enumerate(loaded.blocks())
        for s in b.sub_blocks
    }
    draft = cut(loaded, tmp_path / "p", kept)
    assert draft.stock
    theirs, ours = load_file(base / "model.safetensors"), load_file(draft.path / "model.safetensors")
    assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_gguf_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    pytest.importorskip("gguf")
    from tiny_gguf import gguf_model, save_gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = load(str(save_gguf(tmp_path / "m.gguf", gguf_model(), kind=kind)), device="cpu", dtype="bf16")
    draft = cut(loaded, tmp_path / "p")
    assert loaded.source.path is not None
    assert_cut_from(loaded.source.path, draft, loaded)
    found, dtype = contents(draft.path), DTYPES[{"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[kind]]
    assert torch.equal(found["model.norm.weight"], gguf_model().model.norm.weight)
    assert torch.equal(found["lm_head.weight"], gguf_model().lm_head.weight.to(dtype))


# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [None, "float32", "float16"])
def test_types_come_from_the_tensors_whatever_config_json_says(tmp_path: Path, said: str | None) -> None:
    base = edited(saved(tmp_path / "m", dtype=torch.bfloat16), dtype=said, torch_dtype=None)
    draft = cut(load(str(base), device="cpu", dtype="fp32"), tmp_path / "p")
    assert {t.dtype for t in stored_tensors(draft.path).values()} == {"BF16"}
    assert json.loads((draft.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_each_tensor_keeps_its_own(tmp_path: Path) -> None:
    base = saved(tmp_path / "m", dtype=torch.bfloat16)
    file = base / "model.safetensors"
    tensors = {n: t.float() + 1e-5 if "norm" in n else t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = load(str(base), device="cpu", dtype="bf16")
    draft = cut(loaded, tmp_path / "p")
    assert draft.config["dtype"] == "bfloat16"
    assert {"norm" in n: t.dtype for n, t in stored_tensors(draft.path).items()} == {True: "F32", False: "BF16"}
    assert_cut_from(base, draft, loaded)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_another_type_can_be_asked_for(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path / "m")
    draft = cut(load(str(base), device="cpu", dtype="bf16"), tmp_path / "p", dtype=DTYPES[kind])
    theirs, ours = contents(base), contents(draft.path)
    assert torch.equal(ours["model.norm.weight"], theirs["model.norm.weight"].to(DTYPES[kind]))


# --- what is written is compared with what was realised ---------------------------------------------


def candidate(loaded: LoadedModel) -> tuple[Ordering, Architecture]:
    """A random order of units, and an architecture with every kind of cut."""
    generator = torch.Generator().manual_seed(0)
    blocks = loaded.blocks()
    keys = [(i, s) for i, b in enumerate(blocks) for s in b.sub_blocks if s.spec.units]
    saliency = {(i, s.spec.name): torch.rand(s.spec.units, generator=generator) for i, s in keys}
    layers = []
    for index, block in enumerate(blocks):
        kept = []
        for sub in block.sub_blocks:
            share = {0: 0.5, 1: 0.0 if sub.spec.name == "attention" else 0.6, 2: 0.0}.get(index, 0.5)
            kept.append((sub.spec.unit, sub.spec.round(share * sub.spec.units) if share else 0))
        layers.append(Layer(tuple(kept), block.stack))
    return Ordering.from_saliency(blocks, saliency), Architecture(tuple(layers))


def written(loaded: LoadedModel, out: Path, **kwargs: Any) -> tuple[Supernet, Architecture, Draft]:
    ordering, arch = candidate(loaded)
    draft = cut(loaded, out, ordering.kept(loaded.blocks(), arch), **kwargs)
    return Supernet(loaded.model, loaded.blocks(), ordering), arch, draft


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma2", "gemma3_text", "olmo2", "gpt_neox", "phi3", "mixtral", "qwen3_moe", "t5"]
)
def test_a_checkpoint_is_its_candidate(tmp_path: Path, family: str) -> None:
    loaded = load(str(saved(tmp_path / "m", family)), device="cpu", dtype="bf16")
    net, arch, draft = written(loaded, tmp_path / "p")
    check_written(net, arch, None, draft)


def test_stubs_are_zeros(tmp_path: Path) -> None:
    net, arch, draft = written(load(str(saved(tmp_path / "m")), device="cpu"), tmp_path / "p", stub_attention=True)
    check_written(net, arch, None, draft)
    file = draft.path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = 1e-6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckFailed, match=r"model\.layers\.1\.self_attn\.q_proj\.weight, the scored candidate does not"
    ):
        check_written(net, arch, None, draft)


@pytest.mark.parametrize("kind", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("memory", ["fp32", "bf16"])
def test_a_checkpoint_in_another_type_is_its_candidate_rounded(tmp_path: Path, kind: str, memory: str) -> None:
    loaded = load(str(saved(tmp_path / "m")), device="cpu", dtype=memory)
    net, arch, draft = written(loaded, tmp_path / "p", dtype=DTYPES[kind])
    check_written(net, arch, None, draft, DTYPES[kind])


@pytest.mark.parametrize("change", ["last bit", "order", "attention", "surplus"])
def test_a_checkpoint_that_is_not_its_candidate_is_refused(tmp_path: Path, change: str) -> None:
    base = saved(tmp_path / "m", dtype=torch.bfloat16)
    net, arch, draft = written(load(str(base), device="cpu", dtype="bf16"), tmp_path / "p")
    file = draft.path / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.self_attn.o_proj.weight"
    if change == "last bit":
        tensors[name].view(torch.int16)[3, 2] ^= 1
    elif change == "order":
        tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].flip(0).contiguous()
    elif change == "attention":
        tensors = {n: t for n, t in tensors.items() if "layers.0.self_attn" not in n}
    else:
        tensors["model.layers.1.self_attn.o_proj.weight"] = tensors[name].clone()
        draft.config["per_layer_config"]["1"].pop("skip")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match=r"model\.layers\.[01]\.(self_attn|mlp)"):
        check_written(net, arch, None, draft)
