"""Files that a checkpoint takes over from its base, and the tokenizer as those files say it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tracenas.errors import UserError
from tracenas.models.checkpoints.base_files import BaseFiles, copied_files
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.writing import save_pruned

SPACES = "two words and 12345 more  x\n\n y"
STATED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
FILES = {  # of all kinds, their text such that saving them again would change it
    "tokenizer_config.json": '{"tokenizer_class":"PreTrainedTokenizerFast" , "eos_token" :"</s>"}',
    "special_tokens_map.json": '{"eos_token": "</s>"}',
    "added_tokens.json": "{}",
    "vocab.json": '{"a" :0}',
    "merges.txt": "#version: 0.2\n",
    "tokenizer.model": "protobuf",
    "spiece.model": "protobuf",
    "chat_template.jinja": "{{ messages }}",
    "chat_template.json": '{"chat_template": "{{ messages }}"}',
    "additional_chat_templates/tools.jinja": "{{ tools }}",
    "generation_config.json": '{"temperature":0.7,"do_sample" :false}',
    "preprocessor_config.json": "{ }",
    "processor_config.json": "{ }",
}


def byte_level(path: Path, stated: str = "PreTrainedTokenizerFast", **settings: Any) -> Tokenizer:
    """A byte-level tokenizer.json with digits apart, under the name of a class."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "12", "Ġw"])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[("1", "2"), ("Ġ", "w")], ignore_merges=True))
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokens.decoder = decoders.ByteLevel()
    tokens.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokens.save(str(path / "tokenizer.json"))
    named = {"tokenizer_class": stated, **STATED, **settings}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    return tokens


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base"
    tiny_model("llama", vocab_size=261).save_pretrained(path)
    (path / "generation_config.json").unlink()
    return path


def pruned(base: LoadedModel, out: Path, *, stock: bool) -> Path:
    """Fewer channels in all blocks, or in one block only."""
    kept: dict[tuple[int, str], Any] = {
        (i, s.spec.name): np.arange(s.spec.units // 2 if s.spec.name == "mlp" and (stock or not i) else s.spec.units)
        for i, b in enumerate(base.blocks())
        for s in b.sub_blocks
    }
    assert save_pruned(base.model, base.files, base.source.family, base.blocks(), kept, out).stock == stock
    return out


@pytest.mark.parametrize("stock", [True, False])
def test_files_are_copied_byte_for_byte(base: Path, tmp_path: Path, stock: bool) -> None:
    byte_level(base)
    for name, text in FILES.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    for name in ("README.md", "events.log", "adapter.bin", "vocabulary.py", ".tokenizer.json"):
        (base / name).write_text("not a tokenizer's")
    out = pruned(load(str(base), device="cpu"), tmp_path / "out", stock=stock)
    names = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    ours = {"config.json", "model.safetensors"} | (set() if stock else {"modeling_tracenas.py"})
    assert names == {*FILES, "tokenizer.json", *ours}
    for name in {*FILES, "tokenizer.json"}:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


CLASSES = [
    "GemmaTokenizer",
    "T5Tokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "TokenizersBackend",
]


@pytest.mark.parametrize("stated", CLASSES)
def test_text_is_cut_as_the_file_says_whatever_its_class_is_called(base: Path, tmp_path: Path, stated: str) -> None:
    from transformers import AutoTokenizer

    plain = byte_level(base, stated)
    loaded = load(str(base), device="cpu")
    ids = plain.encode(SPACES, add_special_tokens=False).ids
    assert loaded.tokenizer(SPACES, add_special_tokens=False).input_ids == ids
    assert loaded.tokenizer.decode(ids) == SPACES
    assert len(loaded.tokenizer) == plain.get_vocab_size()
    assert (loaded.tokenizer.eos_token, loaded.tokenizer.eos_token_id) == ("</s>", 2)
    for stock in (True, False):
        out = pruned(loaded, tmp_path / str(stock), stock=stock)
        assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
        again = load(str(out), device="cpu").tokenizer
        assert again(SPACES, add_special_tokens=False).input_ids == ids
    # its model_type is unknown to transformers, which must not pick another class for that
    own = AutoTokenizer.from_pretrained(tmp_path / "False", trust_remote_code=False)
    assert own(SPACES, add_special_tokens=False).input_ids == ids


def test_a_heterogeneous_checkpoint_names_the_class_that_its_model_type_named(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    byte_level(base)
    (base / "tokenizer_config.json").unlink()
    loaded = load(str(base), device="cpu")
    out = pruned(loaded, tmp_path / "out", stock=False)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings == {"tokenizer_class": type(loaded.tokenizer).__name__}
    (out / "modeling_tracenas.py").write_text("raise SystemExit('remote code ran')")
    own = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert own(SPACES).input_ids == loaded.tokenizer(SPACES).input_ids


def test_a_stock_checkpoint_names_what_version_4_has(base: Path, tmp_path: Path) -> None:
    """Of a base that transformers 5 saved: only the names change."""
    byte_level(base, "TokenizersBackend", extra_special_tokens=["<s>"], backend="tokenizers")
    loaded = load(str(base), device="cpu")
    text = (base / "tokenizer_config.json").read_text()
    other = (pruned(loaded, tmp_path / "h", stock=False) / "tokenizer_config.json").read_text()
    stock = (pruned(loaded, tmp_path / "s", stock=True) / "tokenizer_config.json").read_text()
    assert other == text
    named = text.replace("TokenizersBackend", "PreTrainedTokenizerFast")
    assert stock == named.replace("extra_special_tokens", "additional_special_tokens") != text


# --- tokenizers that are there and cannot be loaded -----------------------------------------------


def own_code(base: Path) -> None:
    byte_level(base)
    (base / "tokenizer.json").unlink()
    named = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}}
    (base / "tokenizer_config.json").write_text(json.dumps(named))
    (base / "tokenization_own.py").write_text("from .more import x\nraise SystemExit('remote code ran')\n")
    (base / "more.py").write_text("x = 1\n")


def sentencepiece_only(base: Path) -> None:
    byte_level(base, "LlamaTokenizer")
    (base / "tokenizer.json").unlink()
    (base / "tokenizer.model").write_bytes(b"no protobuf")


def settings_only(base: Path) -> None:
    byte_level(base)
    (base / "tokenizer.json").unlink()


def nothing(base: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (own_code, "cannot be loaded: it runs code of its own .*--trust-remote-code"),
        (sentencepiece_only, "cannot be loaded: its files cannot be read: ."),
        (settings_only, "cannot be loaded: tokenizer_config.json is there, but no vocabulary"),
        (nothing, "has no tokenizer; give token ids"),
    ],
)
def test_the_reason_reaches_who_needs_the_tokenizer(base: Path, damage: Any, reason: str) -> None:
    from tracenas.pipeline.calibration import calibration_tokens

    damage(base)
    loaded = load(str(base), device="cpu")
    assert loaded.tokenizer is None
    with pytest.raises(UserError, match=reason) as caught:
        calibration_tokens(loaded, "text.txt", samples=1, seq_len=8, seed=0, text_field=None)
    assert "\n" not in str(caught.value) and "give token ids (.safetensors) as data" in str(caught.value)


def test_a_damaged_tokenizer_json_is_refused(base: Path) -> None:
    byte_level(base)
    text = (base / "tokenizer.json").read_text()
    (base / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(UserError, match="tokenizer.json cannot be read: "):
        load(str(base), device="cpu")
    broken = json.loads(text) | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    (base / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(UserError, match="tokenizer.json cannot be read: .*precompiled_charsmap"):  # a panic in Rust
        load(str(base), device="cpu")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
def test_a_pointer_of_git_lfs_is_named(base: Path, name: str) -> None:
    byte_level(base)
    (base / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=f"{name}: a pointer of Git LFS: git lfs pull"):
        load(str(base), device="cpu")


def test_a_tokenizer_that_is_not_understood_is_copied_with_its_code(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tracenas.pipeline.calibration import warn_of_tokenizer

    own_code(base)
    loaded = load(str(base), device="cpu")
    warn_of_tokenizer(loaded)
    assert "copied without having been read: it runs code" in caplog.text
    out = pruned(loaded, tmp_path / "out", stock=True)
    for name in ("tokenizer_config.json", "tokenization_own.py", "more.py"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_links_as_in_the_hubs_cache_become_files(base: Path, tmp_path: Path) -> None:
    byte_level(base)
    (base / "tokenizer.json").rename(tmp_path / "blob")
    (base / "tokenizer.json").symlink_to(tmp_path / "blob")
    assert base / "tokenizer.json" in copied_files(base)
    (tmp_path / "copy").mkdir()
    BaseFiles(base).copy(tmp_path / "copy", stock=True)
    assert not (tmp_path / "copy" / "tokenizer.json").is_symlink()


def test_the_licence_goes_with_what_is_made_of_the_weights(base: Path, tmp_path: Path) -> None:
    byte_level(base)
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        (base / name).write_text(f"the {name} of the base")
    (base / "paper.pdf").write_text("another file")
    (tmp_path / "copy").mkdir()
    BaseFiles(base).copy(tmp_path / "copy", stock=True)
    for name in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
        assert (tmp_path / "copy" / name).read_text() == f"the {name} of the base"
    assert not (tmp_path / "copy" / "paper.pdf").exists()


def test_files_of_other_checkpoints_below_are_not_copied(base: Path) -> None:
    byte_level(base)
    for name in ("original/tokenizer.model", "checkpoint-500/tokenizer.json", "runs/own.tiktoken"):
        (base / name).parent.mkdir()
        (base / name).write_text("another's")
    assert {path.name for path in copied_files(base)} == {"tokenizer.json", "tokenizer_config.json"}


def test_no_tokenizer_is_made_up(base: Path) -> None:
    """transformers makes a tokenizer of a handful of tokens where there are no files."""
    loaded = load(str(base), device="cpu")
    assert loaded.tokenizer is None and loaded.tokenizer_trouble == ""
    assert isinstance(loaded.model.dtype, torch.dtype)
