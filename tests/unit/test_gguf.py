"""GGUF files as models: what is read is what was written, and what cannot be read is told in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import TEMPLATE, gguf_model, save_gguf

from tracenas.errors import UserError
from tracenas.models.checkpoints.gguf import ARCHITECTURES, BLOCKS
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.source import open_source

pytest.importorskip("gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place


def _logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(1, 257, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    return logits


@pytest.mark.parametrize("model_type", sorted(ARCHITECTURES))
def test_the_model_that_was_written_is_the_one_that_is_read(tmp_path: Path, model_type: str) -> None:
    model = gguf_model(model_type)
    path = save_gguf(tmp_path / "m.gguf", model)
    source = open_source(str(path))
    before = source.space().parameters(source.space().base)
    loaded = load(source, device="cpu", dtype="fp32")
    assert torch.allclose(_logits(loaded.model), _logits(model), atol=1e-5)
    assert sum(p.numel() for p in loaded.model.parameters()) == before
    again = open_source(str(path))
    assert again.space().layers == source.space().layers
    assert again.config["model_type"] == model_type
    assert (again.config["dtype"], source.config["dtype"]) == ("float32", "float32")


def test_tokenizer_template_and_special_tokens_carry_over(tmp_path: Path) -> None:
    loaded = load(str(save_gguf(tmp_path / "m.gguf", gguf_model())), device="cpu")
    assert loaded.tokenizer.decode(loaded.tokenizer("naïve text").input_ids) == "naïve text"
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size  # transformers adds a token of its own
    assert (loaded.eos, loaded.model.generation_config.eos_token_id) == (0, 0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "F16", "BF16"])
def test_quantised_weights_are_kept_in_a_sensible_dtype_and_told(tmp_path: Path, kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    model = gguf_model()
    source = open_source(str(save_gguf(tmp_path / "m.gguf", model, kind=kind)))
    expected = {"F16": "float16"}.get(kind, "bfloat16")
    assert source.config["dtype"] == expected
    assert kind in (source.origin or "")
    assert ("dequantised" in (source.origin or "")) == kind.startswith("Q")
    loaded = load(source, device="cpu", dtype="fp32")
    weight = model.model.layers[0].mlp.gate_proj.weight
    type_ = GGMLQuantizationType[kind]
    dequantised = torch.from_numpy(quants.dequantize(quants.quantize(weight.numpy(), type_), type_).copy())
    kept = dequantised.float().to(getattr(torch, expected)).float()
    assert torch.equal(loaded.model.model.layers[0].mlp.gate_proj.weight, kept)


def test_it_is_converted_once_and_needs_no_torch_to_plan(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tracenas")
    path = save_gguf(tmp_path / "m.gguf", gguf_model(), kind="Q8_0")
    load(str(path), device="cpu")
    assert "dequantised" in caplog.text
    caplog.clear()
    (made,) = (cache / "tracenas" / "gguf").iterdir()
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert "license: apache-2.0" in (made / "README.md").read_text(encoding="utf-8")
    load(str(path), device="cpu")
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    assert caplog.text == ""


def test_types_and_sizes_are_the_libraries_own() -> None:
    from gguf import quants
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for number, (name, elements, size) in BLOCKS.items():
        kind = GGMLQuantizationType(number)
        assert (kind.name, *GGML_QUANT_SIZES[kind]) == (name, elements, size)
        assert name in ("F32", "F16") or kind in quants._type_traits


def _refused(path: Path, cache: Path) -> str:
    with pytest.raises(UserError) as error:
        load(open_source(str(path)), device="cpu")
    assert not [f for f in cache.rglob("*") if f.is_file()]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_that_is_cut_short_anywhere_is_refused(tmp_path: Path, cache: Path) -> None:
    whole = save_gguf(tmp_path / "m.gguf", gguf_model()).read_bytes()
    path = tmp_path / "short.gguf"
    for size in (0, 3, 10, 100, 1000, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert str(path) in _refused(path, cache)
    assert "cut short" in _refused(path, cache)


@pytest.mark.parametrize(
    ("architecture", "pairs", "words"),
    [
        ("mamba", {}, "architecture 'mamba'; accepted: llama"),
        ("llama", {"llama__expert_count": 4}, "mixture of experts"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, "stretches its rotary positions"),
    ],
)
def test_what_would_become_another_model_is_refused(
    tmp_path: Path, cache: Path, architecture: str, pairs: dict[str, Any], words: str
) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model(), architecture=architecture, **pairs)
    assert words in _refused(path, cache)


def test_no_gguf_and_no_such_file(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "m.gguf").write_text("not a model, but long enough to be taken for one")
    assert "not a GGUF file" in _refused(tmp_path / "m.gguf", cache)
    assert "no such file" in _refused(tmp_path / "none.gguf", cache)


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path, cache: Path) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model(), kind="Q8_0")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.0.ffn_gate.weight") + len(b"blk.0.ffn_gate.weight") + 4 + 16
    assert raw[at] == 8
    raw[at] = 9  # Q8_1: an intermediate of products, never of weights
    path.write_bytes(raw)
    assert "tensor blk.0.ffn_gate.weight is of GGUF type number 9" in _refused(path, cache)


@pytest.mark.parametrize(
    ("key", "count", "words"),
    [
        ("llama.block_count", 4_000_000_000, "4,000,000,000 blocks by the GGUF header, 4 in the file"),
        ("llama.block_count", 3, "3 blocks by the GGUF header, 4 in the file"),
        ("llama.embedding_length", 2_000_000_000, "'llama.embedding_length' is 2,000,000,000"),
        ("llama.feed_forward_length", 4_294_967_295, "'llama.feed_forward_length' is 4,294,967,295"),
        ("llama.attention.head_count", 2_000_000_000, "'llama.attention.head_count' is 2,000,000,000"),
        ("llama.attention.head_count_kv", 2_000_000_000, "'llama.attention.head_count_kv' is 2,000,000,000"),
        ("llama.attention.key_length", 2_000_000_000, "'llama.attention.key_length' is 2,000,000,000"),
        ("general.alignment", 0, "alignment is 0"),
    ],
)
def test_a_count_that_the_file_has_no_room_for_is_refused(
    tmp_path: Path, cache: Path, key: str, count: int, words: str
) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model(), general__alignment=32)
    raw = bytearray(path.read_bytes())
    at = raw.index(key.encode()) + len(key) + 4
    raw[at : at + 4] = count.to_bytes(4, "little")
    path.write_bytes(raw)
    assert words in _refused(path, cache)


@pytest.mark.parametrize("at", [8, 16])  # how many tensors, how many pairs
@pytest.mark.parametrize("count", [1 << 62, 1 << 20, 4097])
def test_a_header_that_announces_more_than_it_holds_is_refused(
    tmp_path: Path, cache: Path, at: int, count: int
) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model())
    raw = bytearray(path.read_bytes())
    raw[at : at + 8] = count.to_bytes(8, "little")
    path.write_bytes(raw)
    _refused(path, cache)


def test_tensors_that_lie_over_each_other_are_refused(tmp_path: Path, cache: Path) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model())
    raw = bytearray(path.read_bytes())
    for tensor in open_source(str(path)).packed.tensors:  # type: ignore[union-attr]
        at = raw.index(len(tensor.name).to_bytes(8, "little") + tensor.name.encode()) + 8 + len(tensor.name)
        offset = at + 4 + 8 * len(tensor.shape) + 4
        raw[offset : offset + 8] = bytes(8)
    path.write_bytes(raw[: len(raw) // 2])
    assert "cut short" in _refused(path, cache)


def test_a_part_of_a_split_file_is_refused(tmp_path: Path, cache: Path) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model(), split__count=3)
    assert "one of 3 parts" in _refused(path, cache)


def test_opening_reads_the_header_alone_and_a_changed_file_is_converted_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_gguf(tmp_path / "m.gguf", gguf_model())
    with path.open("ab") as file:
        file.truncate(1 << 36)  # 64 GiB, a hole: hashing them takes minutes
    first = open_source(str(path))
    assert first.path == open_source(str(path)).path
    other = save_gguf(tmp_path / "n.gguf", gguf_model(seed=1))
    assert load(str(other), device="cpu").source.path != first.path
    raw = bytearray(other.read_bytes())
    before = open_source(str(other)).path
    raw[-1] ^= 1
    other.write_bytes(raw)
    assert open_source(str(other)).path != before
