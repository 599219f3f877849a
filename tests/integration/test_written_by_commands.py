"""What commands write of a base whose config.json does not say what its files hold."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recovery_toys import settings, write_instructions, write_text
from safetensors.torch import load_file, save_file
from tiny import auto_class, logits_of, save_tiny, tiny_model

from tracenas.cli import invoke
from tracenas.commands.recover.command import recover
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.shards import Entry, write_shards
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.verification import compare_losses

pytestmark = pytest.mark.integration

HEADS = {"llama": "lm_head.weight", "gemma2": "lm_head.weight", "gpt_neox": "embed_out.weight"}
EMBEDDINGS = {
    "llama": "model.embed_tokens.weight",
    "gemma2": "model.embed_tokens.weight",
    "gpt_neox": "gpt_neox.embed_in.weight",
}
IDS = torch.randint(1, 257, (2, 12), generator=torch.Generator().manual_seed(0))


def edited(path: Path, **values: Any) -> Path:
    """config.json with other values; None removes a key."""
    config = json.loads((path / "config.json").read_text()) | values
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return path


def rewritten(path: Path, **changes: torch.Tensor | None) -> Path:
    """The files with other tensors; None removes one."""
    tensors = load_file(path / "model.safetensors") | changes
    save_file({n: t for n, t in tensors.items() if t is not None}, path / "model.safetensors", {"format": "pt"})
    return path


def with_another_head(path: Path, tokenizer: Any, family: str = "llama") -> Path:
    """config.json says tied, the files hold two matrices."""
    save_tiny(path, family, tokenizer, tie_word_embeddings=True, max_position_embeddings=128)
    head = torch.randn(257, 32, generator=torch.Generator().manual_seed(1))
    return rewritten(edited(path, tie_word_embeddings=True), **{HEADS[family]: head})


def tokens(home: Path) -> Path:
    save_file(
        {"input_ids": torch.randint(1, 257, (4, 24), generator=torch.Generator().manual_seed(0))},
        home / "d.safetensors",
    )
    return home / "d.safetensors"


def half(home: Path, family: str = "llama") -> Path:
    heads = 4 if family == "gpt_neox" else 2
    (home / "arch.json").write_text(json.dumps({"layers": [{"heads": heads, "channels": 64}] * 4}))
    return home / "arch.json"


def answer(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    capsys.readouterr()
    assert invoke([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def pruned(capsys: pytest.CaptureFixture[str], home: Path, model: Path, *options: str, family: str = "llama") -> Any:
    argv = (
        "prune",
        model,
        "--arch",
        half(home, family),
        "--data",
        tokens(home),
        "--out",
        home / "p",
        "--batch",
        "4",
    )
    return answer(capsys, *argv, *options)


def transformers_logits(path: Path) -> torch.Tensor:
    with torch.no_grad():
        return logits_of(auto_class("llama").from_pretrained(path, dtype=torch.float32).eval(), IDS)


# --- a head that config.json does not know ----------------------------------------------------------


@pytest.mark.parametrize("family", list(HEADS))
def test_both_matrices_are_counted_and_kept(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    base = with_another_head(tmp_path / "m", tokenizer, family)
    theirs = auto_class(family).from_pretrained(base)
    assert theirs.get_output_embeddings().weight is not theirs.get_input_embeddings().weight
    count = sum(p.numel() for p in theirs.parameters())
    assert answer(capsys, "plan", base)["feasible"]["base"] == count
    made = pruned(capsys, tmp_path, base, "--compensate", "none", family=family)
    assert made["base_params"] == count
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "p" / "model.safetensors")
    for name in (HEADS[family], EMBEDDINGS[family]):
        stored = name if name in after else "lm_head.weight"  # a heterogeneous checkpoint's own names
        assert torch.equal(after[stored], before[name])
    assert json.loads((tmp_path / "p" / "config.json").read_text())["tie_word_embeddings"] is False
    assert (
        open_source(str(tmp_path / "p")).space().parameters(open_source(str(tmp_path / "p")).space().base)
        == made["params"]
    )


def test_sparsify_keeps_both(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = with_another_head(tmp_path / "m", tokenizer)
    argv = ("sparsify", base, "--metric", "magnitude", "--sparsity", "0.5", "--out", tmp_path / "p")
    answer(capsys, *argv)
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "p"))
    for name in ("lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("method", ["pretrain", "lora"])
def test_recover_keeps_both(tmp_path: Path, tokenizer: Any, method: str) -> None:
    base = with_another_head(tmp_path / "m", tokenizer)
    data = write_text(tmp_path / "t.txt", 20) if method == "pretrain" else write_instructions(tmp_path / "i.jsonl")
    result = recover(settings(base, data, tmp_path / "r", method=method, max_steps=2, save_every=2, seq_len=96))
    theirs = auto_class("llama").from_pretrained(result.path)
    before = load_file(base / "model.safetensors")
    for weight, name in (
        (theirs.lm_head.weight, "lm_head.weight"),
        (theirs.model.embed_tokens.weight, EMBEDDINGS["llama"]),
    ):
        assert float((weight.detach() - before[name]).abs().max()) < 0.5 * float(before[name].std())
    assert json.loads((tmp_path / "r" / "config.json").read_text())["tie_word_embeddings"] is False


def test_gguf_holds_both(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    from gguf_cases import read_gguf

    base = with_another_head(tmp_path / "m", tokenizer)
    assert (
        invoke(["export", str(base), "--format", "gguf", "--tokenizer", "none", "--out", str(tmp_path / "m.gguf")]) == 0
    )
    stored, (_, tensors) = load_file(base / "model.safetensors"), read_gguf(tmp_path / "m.gguf")
    assert (tensors["output.weight"] == stored["lm_head.weight"].numpy()).all()
    assert (tensors["token_embd.weight"] == stored["model.embed_tokens.weight"].numpy()).all()


def test_two_matrices_that_are_equal_once_rounded_stay_two(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_another_head(tmp_path / "m", tokenizer)
    embeddings = load_file(base / "model.safetensors")["model.embed_tokens.weight"].bfloat16().float()
    near = embeddings * (1 + 2.0**-12)
    rewritten(base, **{"model.embed_tokens.weight": embeddings, "lm_head.weight": near})
    made = pruned(capsys, tmp_path, base, "--dtype", "bf16", "--compensate", "none")
    assert torch.equal(load_file(tmp_path / "p" / "model.safetensors")["lm_head.weight"], near)
    assert made["params"] == sum(t.numel() for t in load_file(tmp_path / "p" / "model.safetensors").values())


@pytest.mark.parametrize("form", ["equal", "head only", "wider", "not said"])
def test_one_matrix_is_counted_and_written_once(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    base = save_tiny(tmp_path / "m", "qwen3" if form == "not said" else "llama", tokenizer, tie_word_embeddings=True)
    embeddings = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    if form == "equal":
        rewritten(base, **{"lm_head.weight": embeddings.clone()})
    elif form == "wider":
        rewritten(base, **{"lm_head.weight": embeddings.double()})
    elif form == "head only":
        rewritten(base, **{"lm_head.weight": embeddings, "model.embed_tokens.weight": None})
    else:
        rewritten(edited(base, tie_word_embeddings=None), **{"lm_head.weight": embeddings + 1})
    expected = transformers_logits(base)
    count = sum(p.numel() for p in auto_class("llama").from_pretrained(base).parameters())
    assert answer(capsys, "plan", base)["feasible"]["base"] == count
    whole = json.dumps({"layers": [{"heads": 4, "channels": 96}] * 4})
    (tmp_path / "whole.json").write_text(whole)
    argv = ("prune", base, "--arch", tmp_path / "whole.json", "--data", tokens(tmp_path), "--out", tmp_path / "p")
    answer(capsys, *argv, "--compensate", "none")
    torch.testing.assert_close(transformers_logits(tmp_path / "p"), expected)
    stored = load_file(tmp_path / "p" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (form == "not said" and count == sum(t.numel() for t in stored.values()))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "t5"])
def test_a_head_of_its_own_that_is_not_there_is_told_before_any_work(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    base = save_tiny(tmp_path / "m", family, tokenizer, tie_word_embeddings=True)
    edited(base, tie_word_embeddings=False, **({"scale_decoder_outputs": False} if family == "t5" else {}))
    assert invoke(["plan", str(base)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1 and "the files hold no" in told[0] and "tie_word_embeddings" in told[0]


def test_a_t5_head_that_config_json_does_not_know_is_told_before_any_work(tmp_path: Path) -> None:
    tiny_model("t5").save_pretrained(tmp_path / "m")
    rewritten(tmp_path / "m", **{"lm_head.weight": torch.randn(257, 32)})
    with pytest.raises(UserError, match="correct tie_word_embeddings"):
        open_source(str(tmp_path / "m"))


# --- types ------------------------------------------------------------------------------------------


def bf16(path: Path, tokenizer: Any) -> Path:
    """bf16 weights, and no word of it in config.json."""
    tiny_model("llama", max_position_embeddings=128).bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return edited(path, dtype=None, torch_dtype=None)


def types(path: Path) -> set[torch.dtype]:
    return {t.dtype for t in load_file(path / "model.safetensors").values()}


@pytest.mark.parametrize("how", ["none", "ridge", "sequential"])
def test_prune_keeps_the_type(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], how: str) -> None:
    base = bf16(tmp_path / "m", tokenizer)
    pruned(capsys, tmp_path, base, "--compensate", how)
    assert types(tmp_path / "p") == {torch.bfloat16}
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "p", base)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("metric", ["magnitude", "sparsegpt"])
def test_sparsify_keeps_the_type(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    base = bf16(tmp_path / "m", tokenizer)
    data = ("--data", tokens(tmp_path)) if metric == "sparsegpt" else ()
    answer(capsys, "sparsify", base, "--metric", metric, "--sparsity", "0.5", *data, "--out", tmp_path / "p")
    assert types(tmp_path / "p") == {torch.bfloat16}


@pytest.mark.parametrize("method", ["pretrain", "lora"])
def test_recover_keeps_the_types(tmp_path: Path, tokenizer: Any, method: str) -> None:
    base = bf16(tmp_path / "m", tokenizer)
    norms = {n: t.float() for n, t in load_file(base / "model.safetensors").items() if "norm" in n}
    rewritten(base, **norms)
    data = write_text(tmp_path / "t.txt", 20) if method == "pretrain" else write_instructions(tmp_path / "i.jsonl")
    result = recover(settings(base, data, tmp_path / "r", method=method, max_steps=2, save_every=2, seq_len=96))
    found = {"norm" in n: t.dtype for n, t in load_file(result.path / "model.safetensors").items()}
    assert found == {True: torch.float32, False: torch.bfloat16}
    assert json.loads((result.path / "config.json").read_text())["dtype"] == "bfloat16"


def test_gguf_has_the_type(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    base = bf16(tmp_path / "m", tokenizer)
    assert (
        answer(capsys, "export", base, "--format", "gguf", "--tokenizer", "none", "--out", tmp_path / "m.gguf")[
            "outtype"
        ]
        == "bf16"
    )


@pytest.mark.parametrize("metric", ["magnitude", "sparsegpt"])
def test_a_sparse_checkpoint_has_the_numbers_of_the_files(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], metric: str
) -> None:
    base = save_tiny(tmp_path / "m", "llama", tokenizer)
    argv = ("sparsify", base, "--metric", metric, "--sparsity", "0.5", "--data", tokens(tmp_path), "--dtype", "bf16")
    answer(capsys, *argv, "--out", tmp_path / "p")
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "p"))
    for name, tensor in after.items():
        zeros = (tensor == 0) & ("_proj.weight" in name)
        if metric == "magnitude" or "_proj.weight" not in name:
            assert torch.equal(tensor, before[name].masked_fill(zeros, 0))
    assert (after["model.layers.0.mlp.up_proj.weight"] == 0).float().mean() == 0.5


def test_only_refitted_matrices_come_from_memory(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny(tmp_path / "m", "llama", tokenizer)
    pruned(capsys, tmp_path, base, "--compensate", "ridge", "--dtype", "bf16")
    before, after = (load_file(path / "model.safetensors") for path in (base, tmp_path / "p"))
    refitted = {n for n in after if "o_proj.weight" in n or "down_proj.weight" in n}
    assert all(torch.isin(t, before[n]).all() for n, t in after.items() if n not in refitted)
    assert all(torch.equal(after[n], after[n].bfloat16().float()) for n in refitted)


def test_the_base_is_not_in_memory_when_the_checkpoint_is_read_again(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.pipeline import loading, verification

    models: list[Any] = []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        assert all(p.is_meta for model in models for p in model.parameters())
        found = load(*args, **kwargs)
        models.append(found.model)
        return found

    for module in (loading, verification):
        monkeypatch.setattr(module, "load", recorded)
    pruned(capsys, tmp_path, save_tiny(tmp_path / "m", "llama", tokenizer), "--compensate", "ridge")
    assert len(models) == 2


# --- what is checked before the directory appears ---------------------------------------------------


def changed(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """From now on checkpoints are written with another output projection in block 1."""
    import tracenas.models.checkpoints.writing as checkpoint

    def write(directory: Path, entries: list[Entry], size: int | str) -> None:
        name = "model.layers.1.self_attn.o_proj.weight"
        others = [replace(e, make=lambda e=e: change(e.make())) if e.name == name else e for e in entries]
        write_shards(directory, others, size)

    monkeypatch.setattr(checkpoint, "write_shards", write)


def last_bit(tensor: torch.Tensor) -> torch.Tensor:
    flipped = tensor.clone()
    flipped.view(torch.int16 if tensor.dtype.itemsize == 2 else torch.int32)[0, 0] ^= 1
    return flipped


def pruning(tmp_path: Path, base: Path) -> list[str]:
    argv = ["prune", str(base), "--arch", str(half(tmp_path)), "--data", str(tokens(tmp_path))]
    return [*argv, "--out", str(tmp_path / "p"), "--compensate", "none"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_one_bit_is_noticed_and_nothing_is_left(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    base = bf16(tmp_path / "m", tokenizer)
    changed(monkeypatch, last_bit)
    assert invoke([*pruning(tmp_path, base), "--dtype", dtype]) == 1
    assert "model.layers.1.self_attn.o_proj.weight of the checkpoint is not" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_loss_of_what_is_read_back_is_compared_as_well(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    from tracenas.pipeline import verification

    base = bf16(tmp_path / "m", tokenizer)
    changed(monkeypatch, torch.zeros_like)
    monkeypatch.setattr(verification, "check_written", lambda *_: None)
    assert invoke([*pruning(tmp_path, base), "--dtype", dtype]) == 2
    assert "the checkpoint's calibration loss is" in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("float16", 1e-3), ("bfloat16", 6e-3)])
def test_losses_are_compared_to_ten_times_their_noise(dtype: str, apart: float) -> None:
    expected = 1.0 if dtype == "float32" else 8.0
    compare_losses("a", expected + 0.9 * apart, "b", expected, dtype)
    for found in (expected + 1.1 * apart, expected - 1.1 * apart, float("nan")):
        with pytest.raises(UserError, match="not the model that was scored"):
            compare_losses("a", found, "b", expected, dtype)
