"""Writing: what is refused, and that nothing is left half-written. Checking: every damage is named."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tracenas.errors import UserError
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.checking import check_checkpoint
from tracenas.models.checkpoints.headers import INDEX_FILE, read_header
from tracenas.models.checkpoints.shards import Entry, write_shards
from tracenas.models.checkpoints.writing import Draft, save_pruned

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def dense() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def cut(dense: Any, out: Path, changes: dict[tuple[int, str], Any] | None = None, **kwargs: Any) -> Draft:
    config = dense.config.to_dict()
    blocks = config_family(config).blocks(config, Options())
    kept: dict[tuple[int, str], Any] = {
        (i, s.spec.name): np.arange(s.spec.units) for i, b in enumerate(blocks) for s in b.sub_blocks
    }
    kept |= {(0, "attention"): np.array([0, 3]), (1, "mlp"): np.arange(32), **(changes or {})}
    return save_pruned(dense, kwargs.pop("files", None), config_family(config), blocks, kept, out, **kwargs)


def refused(call: Any, *arguments: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- writing --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(dense: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> BaseFiles:
    path = tmp_path_factory.mktemp("base")
    dense.config.save_pretrained(path)
    tokenizer.save_pretrained(path)
    odd = {"temperature": 0.7, "do_sample": False, "max_length": 33}  # transformers refuses to save it
    (path / "generation_config.json").write_text(json.dumps(odd))
    return BaseFiles(path)


def test_everything_is_carried_over(dense: Any, tokenizer: Any, files: BaseFiles, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    draft = cut(dense, tmp_path / "a" / "b", files=files, card="# a card\n")
    names = {p.name for p in draft.path.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "modeling_tracenas.py",
        "README.md",
        "tokenizer.json",
    }
    loaded = AutoTokenizer.from_pretrained(draft.path, trust_remote_code=False)
    assert loaded("hello").input_ids == tokenizer("hello").input_ids
    assert GenerationConfig.from_pretrained(draft.path).temperature == 0.7
    assert (draft.path / "README.md").read_text() == "# a card\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "a"] and list((tmp_path / "a").iterdir()) == [draft.path]
    assert draft.path.stat().st_mode & 0o055  # not the 0700 of a temporary directory


def test_a_tokenizer_without_a_terminal_runs_no_code_of_the_checkpoint(
    dense: Any, tokenizer: Any, files: BaseFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain call: transformers reads the configuration first and asks at a terminal whether to run its code."""
    from transformers import AutoTokenizer
    from transformers.models.auto import configuration_auto

    def end_of_file(_: str) -> str:
        raise EOFError

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("code of the checkpoint was run")

    draft = cut(dense, tmp_path / "out", files=files)
    monkeypatch.setattr("builtins.input", end_of_file)
    monkeypatch.setattr(configuration_auto, "get_class_from_dynamic_module", run)
    assert AutoTokenizer.from_pretrained(draft.path)("hello").input_ids == tokenizer("hello").input_ids


def test_the_card_may_look_at_the_draft(dense: Any, tmp_path: Path) -> None:
    def card(draft: Draft) -> str:
        check_checkpoint(draft.path)
        return f"{draft.parameters} parameters\n"

    draft = cut(dense, tmp_path / "out", card=card)
    stored = load_file(draft.path / "model.safetensors")
    assert (draft.path / "README.md").read_text() == f"{sum(t.numel() for t in stored.values())} parameters\n"


def test_an_error_leaves_nothing(dense: Any, tmp_path: Path) -> None:
    def card(draft: Draft) -> str:
        raise RuntimeError("the loss is another")

    with pytest.raises(RuntimeError, match="the loss is another"):
        cut(dense, tmp_path / "out", card=card)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError):
        cut(dense, tmp_path / "mine", card=card)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_an_occupied_directory_is_refused(dense: Any, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    assert "not empty" in refused(cut, dense, tmp_path)
    assert "is a file" in refused(cut, dense, tmp_path / "note")
    assert [p.name for p in tmp_path.iterdir()] == ["note"]


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to write more into a file, as it does when the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 2_000, 60_000])  # config.json, tokenizer.json, model.safetensors
def test_a_full_disk(dense: Any, files: BaseFiles, tmp_path: Path, size: int) -> None:
    with files_up_to(size):
        message = refused(cut, dense, tmp_path / "out", files=files)
    assert message.startswith(f"cannot write {tmp_path / 'out'}: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ids", [[3, 0], [0, 0], [0, 4], [-1, 0], []])
def test_ids_must_fit(dense: Any, tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(ValueError, match="block 0, attention"):
        cut(dense, tmp_path / "out", {(0, "attention"): np.array(ids, dtype=np.int64)})
    assert list(tmp_path.iterdir()) == []


def test_nothing_kept(dense: Any, tmp_path: Path) -> None:
    nothing = {(i, name): None for i in range(3) for name in ("attention", "mlp")}
    assert "at least one must stay" in refused(cut, dense, tmp_path / "out", nothing)


def test_uncut_is_the_base(dense: Any, tmp_path: Path) -> None:
    whole = {(0, "attention"): np.arange(4), (1, "mlp"): np.arange(64)}
    draft = cut(dense, tmp_path / "out", whole)
    assert draft.stock
    stored = load_file(draft.path / "model.safetensors")
    assert set(stored) == set(dense.state_dict())
    assert all(stored[name].equal(value) for name, value in dense.state_dict().items())


def test_tensors_of_all_dtypes_are_read_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "odd": torch.tensor([True, False, True]),
        "half": torch.randn(3, 5, generator=generator).to(torch.float16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "ids": torch.arange(7),
        "brain": torch.randn(2, 3, generator=generator).to(torch.bfloat16).T,
        "none": torch.zeros(0, 4),
    }
    entries = [Entry(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in tensors.items()]
    write_shards(tmp_path, entries, "5GB")
    found = load_file(tmp_path / "model.safetensors")
    assert set(found) == set(tensors)
    assert all(found[n].dtype == t.dtype and found[n].equal(t) for n, t in tensors.items())
    header = read_header(tmp_path / "model.safetensors")
    assert {n: t.shape for n, t in header.items()} == {n: tuple(t.shape) for n, t in tensors.items()}


# --- checking -------------------------------------------------------------------------------------


@pytest.fixture
def saved(dense: Any, tmp_path: Path) -> Path:
    return cut(dense, tmp_path / "saved", max_shard_size=30_000).path


def test_a_whole_checkpoint_passes(saved: Path) -> None:
    assert len(list(saved.glob("*.safetensors"))) > 2
    check_checkpoint(saved)


def test_no_config(saved: Path) -> None:
    (saved / "config.json").unlink()
    assert "holds no config.json" in refused(check_checkpoint, saved)


def test_a_missing_shard(saved: Path) -> None:
    first = sorted(saved.glob("*.safetensors"))[0]
    count = len(list(saved.glob("*.safetensors")))
    first.unlink()
    assert f"1 of {count} shards are missing, first: {first.name}" in refused(check_checkpoint, saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 2000])
def test_a_truncated_shard(saved: Path, keep: int) -> None:
    first = sorted(saved.glob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:keep])
    message = refused(check_checkpoint, saved)
    assert first.name in message and "damaged" in message


def test_a_shard_without_its_tensors(saved: Path) -> None:
    shard = sorted(saved.glob("*.safetensors"))[1]
    save_file({"other": torch.zeros(1)}, shard)
    assert "in their shard" in refused(check_checkpoint, saved)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {"a": 1}}'])
def test_a_foreign_index(saved: Path, text: str) -> None:
    (saved / INDEX_FILE).write_text(text)
    assert "weight_map" in refused(check_checkpoint, saved)


def test_missing_tensors_are_counted(dense: Any, tmp_path: Path) -> None:
    path = cut(dense, tmp_path / "out").path
    file = path / "model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "layers.1.mlp" not in n}, file)
    message = refused(check_checkpoint, path)
    assert "3 tensors are missing, first: model.layers.1.mlp." in message
    save_file({n: t for n, t in tensors.items() if n != "model.norm.weight"}, file)
    assert refused(check_checkpoint, path).endswith("tensor model.norm.weight is missing")
    save_file({**tensors, "model.norm.weight": torch.ones(31)}, file)
    assert "model.norm.weight has another shape ([31] in the file, [32]" in refused(check_checkpoint, path)


def test_a_wrong_config(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "hidden_size": "wide"}))
    assert "config.json" in refused(check_checkpoint, saved)
    (saved / "config.json").write_text("[]")
    assert "holds no object" in refused(check_checkpoint, saved)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **SIZES}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    message = refused(check_checkpoint, tmp_path)
    assert "only safetensors is accepted" in message and "pytorch_model.bin" in message
