"""GGUF files read back: every tensor and every count is what the checkpoint has, in each layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_cases import checkpoint, read_gguf, stored, with_tokenizer

from tracenas.demo import model_path
from tracenas.errors import UserError
from tracenas.exporters.gguf import export_gguf
from tracenas.models.checkpoints.source import open_source

UNEVEN = [(0, 64), (4, 0), (2, 96), (4, 32)]


def exported(directory: Path, **settings: Any) -> tuple[Any, dict[str, Any], dict[str, np.ndarray]]:
    out = directory.with_suffix(".gguf")
    made = export_gguf(open_source(str(directory)), out, **{"outtype": "f32", **settings})
    return made, *read_gguf(out)


def half_split(rows: np.ndarray, dim: int) -> np.ndarray:
    """Undoes the interleaving by its definition: row 2j + h of a head goes to row h · d/2 + j."""
    out = np.empty_like(rows)
    for head in range(len(rows) // dim):
        for j in range(dim // 2):
            for h in (0, 1):
                out[head * dim + h * dim // 2 + j] = rows[head * dim + 2 * j + h]
    return out


def test_deci_holds_blocks_of_any_shape_with_stubs_where_llama_cpp_needs_them(tmp_path: Path) -> None:
    made, metadata, tensors = exported(checkpoint(tmp_path / "m", "llama", UNEVEN))
    original = stored(tmp_path / "m")
    assert (made.layout, metadata["general.architecture"]) == ("deci", "deci")
    assert metadata["deci.attention.head_count"] == [1, 4, 2, 4]
    assert metadata["deci.attention.head_count_kv"] == [1, 2, 2, 2]
    assert metadata["deci.feed_forward_length"] == [64, 32, 96, 32]
    assert metadata["deci.attention.key_length"] == metadata["deci.rope.dimension_count"] == 8
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        assert not tensors[f"blk.0.{part}.weight"].any()
    for part in ("ffn_gate", "ffn_up", "ffn_down"):
        assert not tensors[f"blk.1.{part}.weight"].any()
    assert made.added == 32 * 8 * 4 + 3 * 32 * 32
    assert "attention of block 0, MLP of block 1" in made.notes[0]
    for kind in ("weight", "bias"):
        for part in ("q", "k"):
            name = f"model.layers.2.self_attn.{part}_proj.{kind}"
            assert (half_split(tensors[f"blk.2.attn_{part}.{kind}"], 8) == original[name]).all()
        assert (tensors[f"blk.2.attn_v.{kind}"] == original[f"model.layers.2.self_attn.v_proj.{kind}"]).all()
        assert (tensors[f"blk.2.ffn_down.{kind}"] == original[f"model.layers.2.mlp.down_proj.{kind}"]).all()
    assert (tensors["token_embd.weight"] == original["model.embed_tokens.weight"]).all()
    assert (tensors["output.weight"] == original["lm_head.weight"]).all()


def test_a_middle_block_without_attention_needs_no_stub(tmp_path: Path) -> None:
    made, metadata, tensors = exported(checkpoint(tmp_path / "m", "qwen2", [(4, 96), (0, 64), (2, 32), (4, 96)]))
    assert made.layout == "deci" and made.added == 0
    assert metadata["deci.attention.head_count"] == [4, 0, 2, 4]
    assert not any(name.startswith("blk.1.attn") for name in tensors)


def test_openelm_fuses_q_k_v_and_puts_a_stub_for_every_removed_part(tmp_path: Path) -> None:
    made, metadata, tensors = exported(checkpoint(tmp_path / "m", "qwen3", [(4, 96), (0, 64), (2, 0), (4, 32)]))
    original = stored(tmp_path / "m")
    assert made.layout == "openelm" and "output.weight" not in tensors
    assert metadata["openelm.attention.head_count"] == [4, 1, 2, 4]
    assert metadata["openelm.feed_forward_length"] == [96, 64, 32, 32]
    fused = [original[f"model.layers.2.self_attn.{p}_proj.weight"] for p in "qkv"]
    assert (tensors["blk.2.attn_qkv.weight"] == np.concatenate(fused)).all()
    assert not tensors["blk.1.attn_qkv.weight"].any() and not tensors["blk.2.ffn_down.weight"].any()
    assert (tensors["blk.3.attn_q_norm.weight"] == original["model.layers.3.self_attn.q_norm.weight"]).all()


def test_where_no_layout_fits_blocks_are_filled_up_and_the_cost_is_said(tmp_path: Path) -> None:
    changes = {"tie_word_embeddings": False}
    made, metadata, tensors = exported(checkpoint(tmp_path / "m", "qwen3", UNEVEN, **changes))
    original = stored(tmp_path / "m")
    assert (made.layout, made.arch) == ("padded", "qwen3")
    assert metadata["qwen3.attention.head_count"] == 4 and metadata["qwen3.feed_forward_length"] == 96
    assert f"{made.added:,} parameters more" in made.notes[0] and made.added > 0
    q = tensors["blk.2.attn_q.weight"].reshape(2, 2, 16, 32)  # KV group, query, head_dim, hidden
    kept = original["model.layers.2.self_attn.q_proj.weight"].reshape(2, 1, 16, 32)
    assert (q[:, :1] == kept).all() and not q[:, 1:].any()
    o = tensors["blk.2.attn_output.weight"].reshape(32, 2, 2, 16)
    assert not o[:, :, 1:].any() and o[:, :, :1].any()
    down = tensors["blk.3.ffn_down.weight"]
    assert (down[:, :32] == original["model.layers.3.mlp.down_proj.weight"]).all() and not down[:, 32:].any()


def test_gemma_norms_are_written_as_one_plus_w(tmp_path: Path) -> None:
    made, metadata, tensors = exported(checkpoint(tmp_path / "m", "gemma2", [(4, 96)] * 4))
    original = stored(tmp_path / "m")
    assert (made.layout, made.arch) == ("stock", "gemma2")
    name = "model.layers.1.post_feedforward_layernorm.weight"
    assert np.allclose(tensors["blk.1.post_ffw_norm.weight"], original[name] + 1)
    assert metadata["gemma2.attention.sliding_window_pattern"] == [True, False, True, False]
    assert metadata["gemma2.final_logit_softcapping"] == pytest.approx(5.0)


@pytest.mark.parametrize("only_head", [False, True], ids=["without the model's prefix", "head in place of embeddings"])
def test_the_names_that_transformers_reads_are_read(tmp_path: Path, only_head: bool) -> None:
    """As the model without a head is saved (embedding models), or a tied matrix under its other name."""
    from safetensors.torch import load_file, save_file

    checkpoint(tmp_path / "m", "qwen3", [(4, 96)] * 4)
    _, _, expected = exported(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    other = {"model.embed_tokens.weight": "lm_head.weight"} if only_head else {}
    tensors = {other.get(n, n if only_head else n.removeprefix("model.")): t for n, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    (tmp_path / "m.gguf").unlink()
    _, _, found = exported(tmp_path / "m")
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in expected)


def test_llama_3_rope_is_a_tensor_of_factors(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    checkpoint(tmp_path / "m", "llama", [(4, 96)] * 4, rope_parameters=scaling)
    _, _, tensors = exported(tmp_path / "m")
    from transformers import AutoConfig

    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(tmp_path / "m"), None)
    plain = 10000.0 ** (-np.arange(0, 8, 2) / 8)
    assert np.allclose(plain / tensors["rope_freqs.weight"], expected.numpy(), rtol=1e-6)
    assert tensors["rope_freqs.weight"].max() == pytest.approx(8.0)


def test_a_window_that_a_layout_has_not_cuts_the_context_and_is_said(tmp_path: Path) -> None:
    made, metadata, _ = exported(checkpoint(tmp_path / "m", "mistral", UNEVEN, sliding_window=6))
    assert metadata["deci.context_length"] == 6
    assert any("context_length is 6 (the window) instead of 64" in note for note in made.notes)


@pytest.mark.parametrize(("outtype", "error"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 8e-3)])
def test_smaller_types(tmp_path: Path, outtype: str, error: float) -> None:
    made, metadata, tensors = exported(
        checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 40), (4, 96), (4, 96)]), outtype=outtype
    )
    original = stored(tmp_path / "m")["model.layers.2.mlp.up_proj.weight"]
    found = tensors["blk.2.ffn_up.weight"]
    assert 0 < np.abs(found - original).max() <= error * np.abs(original).max()
    assert (
        tensors["blk.2.ffn_norm.weight"] == stored(tmp_path / "m")["model.layers.2.post_attention_layernorm.weight"]
    ).all()
    # rows of 40 cannot be quantised in blocks of 32; those of 2 heads of 8 neither
    assert made.not_quantized == (("blk.0.attn_output.weight", "blk.1.ffn_down.weight") if outtype == "q8_0" else ())
    assert (
        made.size == (tmp_path / "m.gguf").stat().st_size
        and metadata["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7}[outtype]
    )


def test_a_number_that_f16_cannot_hold_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint(tmp_path / "m", "llama", UNEVEN)
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["lm_head.weight"][0, 0] = 1e6
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lm_head.weight holds 1e\+06, more than f16 can; use --outtype bf16 or f32"):
        exported(tmp_path / "m", outtype="f16")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_what_no_layout_can_hold_is_refused_with_every_reason(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", "qwen3", UNEVEN, attention_bias=True)
    with pytest.raises(
        UserError, match="no GGUF layout can hold this model.*openelm: it has no biases.*padded: .*no bias of o"
    ):
        exported(tmp_path / "m")
    with pytest.raises(
        UserError, match="layout stock cannot hold this model: its blocks are all alike.*--strategy uniform"
    ):
        exported(tmp_path / "m", layout="stock")
    checkpoint(
        tmp_path / "d", "llama", UNEVEN, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    )
    with pytest.raises(UserError, match="rope scaling 'dynamic' has no counterpart"):
        exported(tmp_path / "d")
    assert not list(tmp_path.glob("*.gguf*"))


def test_padding_can_be_asked_for(tmp_path: Path) -> None:
    made, _, tensors = exported(checkpoint(tmp_path / "m", "llama", UNEVEN), layout="padded")
    assert (made.layout, made.arch) == ("padded", "llama")
    assert {tensors[f"blk.{i}.ffn_up.weight"].shape for i in range(4)} == {(96, 32)}
    assert tensors["blk.2.attn_q.bias"].shape == (32,)


def test_without_a_tokenizer_the_file_says_so(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", "llama", UNEVEN)
    made, metadata, _ = exported(tmp_path / "m")
    assert metadata["tokenizer.ggml.model"] == "none" and metadata["deci.vocab_size"] == 257
    assert any(note.startswith("no tokenizer: token ids only") for note in made.notes)


def test_the_checkpoints_tokenizer_goes_along(tmp_path: Path) -> None:
    checkpoint(tmp_path / "m", "llama", UNEVEN, vocab_size=2050)
    _, metadata, _ = exported(with_tokenizer(tmp_path / "m", model_path()))
    assert metadata["tokenizer.ggml.pre"] == "gpt-2" and metadata["tokenizer.ggml.tokens"][2048:] == [
        "[PAD2048]",
        "[PAD2049]",
    ]


def test_a_files_tensors_are_checked_against_the_rounding_of_their_type(tmp_path: Path) -> None:
    from tracenas.errors import CheckFailed
    from tracenas.exporters.gguf.layouts.layout import FileDraft, Tensor
    from tracenas.exporters.gguf.rounding import check_stored
    from tracenas.exporters.gguf.writer import write

    weight = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    weight[0, :32] *= 1e-6
    for outtype in ("f32", "f16", "bf16", "q8_0"):
        path = tmp_path / outtype
        tensors = (Tensor("a.weight", (8, 64), ("a",), lambda: weight),)
        write(path, FileDraft("llama", {}, tensors), {}, outtype)
        check_stored(path, tensors)
        worse = weight.copy()
        worse[3, 5] += 0.05
        with pytest.raises(CheckFailed, match=f"a.weight of the file is not the checkpoint's.*{outtype.upper()}"):
            check_stored(path, (Tensor("a.weight", (8, 64), ("a",), lambda worse=worse: worse),))
        with pytest.raises(CheckFailed, match="other tensors than were meant: a.weight"):
            check_stored(path, ())


def test_how_logits_are_judged() -> None:
    from tracenas.exporters.gguf.check import agreement

    expected = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    assert agreement(expected + np.float32(9e-4), expected).ok
    assert not agreement(expected + np.float32(1.1e-3), expected).ok
    assert agreement(expected + np.float32(5e-3), expected, gelu=True).ok
    assert not agreement(expected * np.nan, expected, rounded=True).ok
    assert not agreement(-expected, expected, rounded=True).ok
