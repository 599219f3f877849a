"""tokenizer.json as GGUF metadata."""

import json
from pathlib import Path
from typing import Any

import pytest

from tracenas.errors import UserError
from tracenas.exporters.gguf.tokenizer import gguf_vocabulary

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PLAIN = {**BYTE_LEVEL, "use_regex": False}
# As in the tokenizer.json of Llama 3 and of Qwen 2.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")


def sequence(*parts: Any) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def written(directory: Path, model: dict[str, Any], settings: dict[str, Any] | None = None, **rest: Any) -> Path:
    data = {"added_tokens": [], "normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, **rest}
    vocab = {"a": 0, "b": 1, "ab": 2, "<s>": 3}
    data["model"] = {"type": "BPE", "vocab": vocab, "merges": ["a b"], **model}
    (directory / "tokenizer.json").write_text(json.dumps(data))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings or {}))
    return directory


@pytest.mark.parametrize(
    ("rules", "whole", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, BYTE_LEVEL), False, "smollm"),
        (sequence(split(LLAMA_3), PLAIN), True, "llama-bpe"),
        (sequence(split(LLAMA_3), PLAIN), False, "smaug-bpe"),
        (sequence(split(QWEN_2), PLAIN), False, "qwen2"),
    ],
)
def test_pre_tokenizers_are_recognised_exactly(tmp_path: Path, rules: Any, whole: bool, name: str) -> None:
    found = gguf_vocabulary(written(tmp_path, {"ignore_merges": whole}, pre_tokenizer=rules), 4, {}).metadata
    assert found["tokenizer.ggml.pre"] == name and found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.merges"] == ["a b"]


@pytest.mark.parametrize("rules", [PLAIN, None, sequence(split(QWEN_2 + "|x"), PLAIN), {"type": "Whitespace"}])
def test_an_unknown_pre_tokenizer_is_not_guessed(tmp_path: Path, rules: Any) -> None:
    written(tmp_path, {}, pre_tokenizer=rules)
    with pytest.raises(
        UserError, match="pre-tokenizer is none of those.*--pre, or write token ids only with --tokenizer"
    ):
        gguf_vocabulary(tmp_path, 4, {})
    assert gguf_vocabulary(tmp_path, 4, {}, pre="gpt-2").metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert gguf_vocabulary(tmp_path, 4, {}, use=False).metadata == {"tokenizer.ggml.model": "none"}


def test_special_tokens_types_and_template(tmp_path: Path) -> None:
    special = {"id": 3, "content": "<s>", "special": True}
    own = {"id": 4, "content": "<tool>", "special": False}
    around = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    settings = {"bos_token": "<s>", "eos_token": {"content": "<s>"}, "chat_template": "{{ messages }}"}
    written(
        tmp_path,
        {},
        settings,
        added_tokens=[special, own],
        post_processor={"type": "Sequence", "processors": [BYTE_LEVEL, around]},
    )
    found = gguf_vocabulary(tmp_path, 6, {"pad_token_id": 2}).metadata
    assert found["tokenizer.ggml.tokens"] == ["a", "b", "ab", "<s>", "<tool>", "[PAD5]"]
    assert found["tokenizer.ggml.token_type"] == [1, 1, 1, 3, 4, 5]
    ids = {key: found[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "padding")}
    assert ids == {"bos": 3, "eos": 3, "padding": 2}
    assert (found["tokenizer.ggml.add_bos_token"], found["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert found["tokenizer.chat_template"] == "{{ messages }}"


def test_added_tokens_without_a_row_are_left_out_and_told(tmp_path: Path) -> None:
    """As in Gemma 3's text models, and after `add_special_tokens` without `resize_token_embeddings`."""
    image = {"id": 4, "content": "<image_soft_token>", "special": True}
    written(tmp_path, {}, {"eos_token": "<s>", "pad_token": "<image_soft_token>"}, added_tokens=[image])
    found = gguf_vocabulary(tmp_path, 4, {})
    assert found.metadata["tokenizer.ggml.tokens"] == ["a", "b", "ab", "<s>"]
    assert found.notes == ("left out, the embeddings have no row for them: <image_soft_token>",)
    assert "tokenizer.ggml.padding_token_id" not in found.metadata
    assert found.metadata["tokenizer.ggml.eos_token_id"] == 3


def test_sentencepiece_scores_follow_the_merges(tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7, "▁a": 8}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    model = {
        "vocab": vocab,
        "merges": [["a", "b"], ["▁", "ab"], ["▁", "a"]],
        "byte_fallback": True,
        "unk_token": "<unk>",
    }
    written(
        tmp_path,
        model,
        {"add_bos_token": True},
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        added_tokens=[{"id": 1, "content": "<s>", "special": True}],
    )
    found = gguf_vocabulary(tmp_path, 9, {})
    assert found.metadata["tokenizer.ggml.model"] == "llama"
    assert found.metadata["tokenizer.ggml.scores"] == [0, 0, 0, 0, 0, 0, -1, -2, -3]
    assert found.metadata["tokenizer.ggml.token_type"] == [2, 3, 6, 1, 1, 1, 1, 1, 1]
    assert found.metadata["tokenizer.ggml.add_space_prefix"] is True
    assert found.metadata["tokenizer.ggml.add_bos_token"] is True
    assert found.notes and found.notes[0].startswith("1 of 3 merged tokens")  # ▁a + b is in the vocabulary, not merged


def test_other_tokenizers_are_refused_with_a_way_out(tmp_path: Path) -> None:
    written(tmp_path, {"type": "Unigram", "vocab": [["a", 0.0]]})
    with pytest.raises(UserError, match="of type Unigram.*accepted: BPE.*--tokenizer none"):
        gguf_vocabulary(tmp_path, 4, {})
    written(tmp_path, {})
    with pytest.raises(UserError, match="the tokenizer has token 3, the model's embeddings have 2 rows"):
        gguf_vocabulary(tmp_path, 2, {})
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(UserError, match="not a tokenizer of the tokenizers library"):
        gguf_vocabulary(tmp_path, 4, {})
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match="has another form"):
        gguf_vocabulary(tmp_path, 4, {})
