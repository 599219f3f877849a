"""`recover` in this process: what comes out, exact resume, and input that is wrong."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recovery_toys import (
    log_of,
    save_dense,
    save_heterogeneous,
    save_sparse,
    settings,
    weights_of,
    write_instructions,
    write_text,
)

from tracenas.commands.recover.command import recover
from tracenas.data.encoding import TextEncoding
from tracenas.data.held_out import windows
from tracenas.data.tokens import save_tokens
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import load
from tracenas.models.functionals.perplexity import perplexity
from tracenas.recovery.callbacks import RunLog

pytestmark = pytest.mark.integration


@dataclass
class Toys:
    dense: Path
    pruned: Path
    sparse: Path
    text: Path
    held_out: Path
    tokens: Path
    instructions: Path
    short: Path


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Toys:
    root = tmp_path_factory.mktemp("recovery")
    dense = save_dense(root / "dense", tokenizer)
    tokens = root / "tokens.safetensors"
    save_tokens(tokens, torch.randint(1, 257, (7, 32), generator=torch.Generator().manual_seed(3)))
    return Toys(
        dense,
        save_heterogeneous(dense, root / "pruned", tokenizer),
        save_sparse(dense, root / "sparse", tokenizer),
        write_text(root / "text.txt", 60),
        write_text(root / "held-out.txt", 10, seed=1),
        tokens,
        write_instructions(root / "instructions.jsonl"),
        write_text(root / "short.txt", 6, seed=2),
    )


@pytest.fixture(autouse=True)
def no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pickled, when saving as when resuming."""

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a pickle is written or read")

    monkeypatch.setattr(torch, "save", refused)
    monkeypatch.setattr(torch, "load", refused)


class Interrupted(Exception):
    """Stands for the process's death."""


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    original = RunLog.on_step_end

    def dies(self: RunLog, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        original(self, args, state, control, **kwargs)
        if state.global_step == at:
            raise Interrupted

    monkeypatch.setattr(RunLog, "on_step_end", dies)


def test_pretrain_of_a_heterogeneous_checkpoint(toys: Toys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = recover(
        settings(toys.pruned, toys.text, out, text=str(toys.held_out), max_steps=30, save_every=10, peak_tflops=1.0)
    )
    assert found.perplexity is not None and found.perplexity_before is not None
    assert found.perplexity < 0.5 * found.perplexity_before
    assert found.tokens == 30 * 4 * 32
    again = load(str(out), device="cpu")
    assert again.tokenizer is not None and type(again.model).__name__.startswith("TraceNAS")
    held = windows(str(toys.held_out), TextEncoding(again.tokenizer), 32, limit=64)
    assert found.perplexity == pytest.approx(perplexity(again.model, held, 8).perplexity, rel=1e-5)
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    same = json.loads((toys.pruned / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == same
    card = (out / "README.md").read_text()
    assert all(str(out.parent) not in (out / name).read_text() for name in ("README.md", "config.json"))
    assert "## Architecture" in card and "## Recovery" in card and f"{found.perplexity:.4f}" in card
    assert f'from_pretrained("{out.name}"' in card  # under its own name, not the pruned one's
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "perplexity" in r] == [0, 10, 20, 30]
    assert all(r["tokens_per_second"] > 0 and 0 < r["mfu"] < 1 for r in records if "loss" in r)
    assert not [p for p in out.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert recover(settings(toys.pruned, toys.text, out, max_steps=30, resume=True)) == found


CASES: dict[str, dict[str, Any]] = {
    "streaming": {},
    "tokens": {"data": "tokens"},
    "mixture": {"data": "mixture"},
    "lora": {"method": "lora", "data": "instructions", "lora_dropout": 0.1, "seq_len": 96},
    "distill": {"method": "distill", "temperature": 2.0, "top_k": 9, "ce_weight": 0.25},
}
QUICK = ("mixture", "lora")


@pytest.mark.parametrize("case", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in CASES])
def test_resumed_run_equals_the_undisturbed_one(
    case: str, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at step 5 of 6, with step 4 saved: the same log and the same weights, to the last bit."""
    changes = dict(CASES[case])
    mixture = f"{toys.text}=0.7,{toys.short}=0.3"
    data = {"tokens": toys.tokens, "mixture": mixture, "instructions": toys.instructions}.get(
        changes.pop("data", ""), toys.text
    )
    straight = recover(settings(toys.pruned, data, tmp_path / "straight", keep_checkpoints=True, **changes))
    with monkeypatch.context() as patched:
        interrupt(patched, at=5)
        with pytest.raises(Interrupted):
            recover(settings(toys.pruned, data, tmp_path / "killed", **changes))
    left = tmp_path / "killed" / "checkpoints"
    assert sorted(p.name for p in left.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    (left / ".unfinished-6").mkdir()
    (left / ".unfinished-6" / "model.safetensors").write_bytes(b"cut off")
    torch.manual_seed(99)
    resumed = recover(settings(toys.pruned, data, tmp_path / "killed", resume=True, **changes))
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "straight")
    assert [r["step"] for r in log_of(tmp_path / "straight") if "loss" in r] == [1, 2, 3, 4, 5, 6]
    assert [r["step"] for r in log_of(tmp_path / "straight") if "validation_nll" in r] == [0, 2, 4, 6]
    assert resumed.loss == straight.loss and resumed.tokens == straight.tokens
    first, second = weights_of(tmp_path / "straight"), weights_of(tmp_path / "killed")
    assert first.keys() == second.keys() == weights_of(toys.pruned).keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], weight) for name, weight in weights_of(toys.pruned).items())
    pickles = [p for p in (tmp_path / "straight").rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert not pickles and (tmp_path / "straight" / "checkpoints" / "checkpoint-6").is_dir()


def test_tokens_in_place_of_steps(toys: Toys, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Batches of a fiftieth, steps that make up the tokens; what they come to is told and kept."""
    given = {"max_steps": None, "global_batch": None, "tokens": "6.4k", "batch": None, "save_every": 25}
    caplog.set_level("INFO", "tracenas")
    told: list[tuple[int, int]] = []
    found = recover(
        settings(toys.pruned, toys.text, tmp_path / "out", **given), on_step=lambda *step: told.append(step)
    )
    assert told == [(step, 50) for step in range(1, 51)]
    assert found.steps == 50 and found.tokens == 6400
    assert "recover: 50 steps of 128 tokens (4 × 32), 6,400 in all; estimate: " in caplog.text
    assert "recover (pretrain): 50/50, loss " in caplog.text and " tokens/s, learning rate " in caplog.text
    stored = yaml.safe_load((tmp_path / "out" / "recover.yaml").read_text())
    assert (stored["tokens"], stored["max_steps"], stored["global_batch"]) == ("6.4k", 50, 4)


def test_a_batch_that_an_earlier_run_chose_stays(toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a version with another default goes on with what its settings say."""
    given = {"max_steps": 2, "save_every": 1}
    with monkeypatch.context() as patched:
        interrupt(patched, at=1)
        with pytest.raises(Interrupted):
            recover(settings(toys.pruned, toys.text, tmp_path / "out", **given, global_batch=6))
    other = {"max_steps": None, "tokens": "9k", "resume": True}
    with pytest.raises(UserError, match="--resume with another tokens: the run has None, not '9k'"):
        recover(settings(toys.pruned, toys.text, tmp_path / "out", **{**given, **other}, global_batch=None))
    again = recover(settings(toys.pruned, toys.text, tmp_path / "out", **given, global_batch=None, resume=True))
    assert again.steps == 2 and yaml.safe_load((tmp_path / "out" / "recover.yaml").read_text())["global_batch"] == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": "5M"}, "tokens and max-steps are two answers"),
        ({"max_steps": None}, "'tokens' or 'max-steps' is required"),
        ({"max_steps": None, "tokens": "some"}, "tokens 'some': expected a count"),
    ],
)
def test_how_long_is_said_once(toys: Toys, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recover(settings(toys.pruned, toys.text, tmp_path / "out", **given))
    assert not (tmp_path / "out").exists()


def test_a_source_that_ends_is_read_again(toys: Toys, tmp_path: Path) -> None:
    """6 short documents, 24 windows: several epochs, and each step has its whole batch."""
    found = recover(settings(toys.pruned, toys.short, tmp_path / "out"))
    assert found.tokens == 6 * 4 * 32


@pytest.mark.parametrize("method", ["pretrain", "distill", "lora"])
def test_zeros_of_a_sparse_checkpoint_stay(method: str, toys: Toys, tmp_path: Path) -> None:
    data = toys.instructions if method == "lora" else toys.text
    changes: dict[str, Any] = {"distill": {"teacher": str(toys.dense)}, "lora": {"seq_len": 96}}.get(method, {})
    recover(settings(toys.sparse, data, tmp_path / "out", method=method, **changes))
    before, after = weights_of(toys.sparse), weights_of(tmp_path / "out")
    changed = 0
    for name, weight in before.items():
        if "_proj" in name:
            assert torch.equal(after[name] == 0, weight == 0)
            changed += not torch.equal(after[name], weight)
    assert changed and (tmp_path / "out" / "sparsity.json").is_file()


def test_zeros_are_free_to_move_when_asked(toys: Toys, tmp_path: Path) -> None:
    recover(settings(toys.sparse, toys.text, tmp_path / "out", max_steps=1, keep_zeros=False))
    after = weights_of(tmp_path / "out")["model.layers.0.mlp.down_proj.weight"]
    assert int((after == 0).sum()) == 0


def test_best_checkpoint_is_kept(toys: Toys, tmp_path: Path) -> None:
    """The rate is so high that the model is worse in the end than in between."""
    out = tmp_path / "out"
    found = recover(
        settings(
            toys.dense,
            toys.text,
            out,
            text=str(toys.held_out),
            learning_rate=0.3,
            warmup=1.0,
            decay=0.0,
            max_steps=6,
            save_every=1,
            keep_last=1,
        )
    )
    measured = {r["step"]: r for r in log_of(out) if "validation_nll" in r}
    assert found.selection_nll_before == measured.pop(0)["validation_nll"]
    assert found.step == min(measured, key=lambda step: measured[step]["validation_nll"]) < 6
    assert found.selection_nll == measured[found.step]["validation_nll"]
    assert found.perplexity == measured[found.step]["perplexity"]


@pytest.mark.parametrize("method", ["pretrain", "lora"])
def test_what_is_reported_chooses_nothing(
    method: str, toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses by script: the reported text is best at step 2, the split that chooses at step 4."""
    from tracenas.recovery import trainer

    script = iter([(9.0, 9.0), (5.0, 1.0), (1.0, 5.0), (3.0, 8.0)])
    told = iter([loss for pair in script for loss in pair])
    monkeypatch.setattr(trainer, "held_out_nll", lambda model, batches: next(told))
    data = {"pretrain": toys.text, "lora": toys.instructions}[method]
    changes: dict[str, Any] = {"method": method, "seq_len": 96 if method == "lora" else 32}
    found = recover(settings(toys.pruned, data, tmp_path / "out", text=str(toys.held_out), **changes))
    assert (found.step, found.selection_nll) == (4, 1.0)
    assert found.perplexity == pytest.approx(math.exp(5.0)) and found.reported_on == str(toys.held_out)
    assert found.selected_on.endswith(f"split off {data}")
    card = (tmp_path / "out" / "README.md").read_text()
    told_there = found.selected_on.replace(str(data), data.name)  # without the directory
    assert f"| chosen on | {told_there} |" in card and f"{toys.held_out.name} (chose nothing)" in card


def test_a_validation_text_of_its_own(toys: Toys, tmp_path: Path) -> None:
    out = tmp_path / "out"
    chooser = write_text(tmp_path / "validation.txt", 10, seed=7)
    found = recover(settings(toys.pruned, toys.text, out, validation=str(chooser), max_steps=2))
    assert found.selected_on == str(chooser) and found.reported_on is None
    model = load(str(out), device="cpu")
    held = windows(str(chooser), TextEncoding(model.tokenizer), 32, limit=64)
    assert found.selection_nll == pytest.approx(perplexity(model.model, held, 8).nll, rel=1e-5)


def test_the_loss_of_instructions_is_that_of_responses(toys: Toys, tmp_path: Path) -> None:
    """By the model as it was written, example by example without padding."""
    import torch.nn.functional as F

    from tracenas.recovery.instructions import instruction_examples

    chooser = write_instructions(tmp_path / "validation.jsonl", 5)
    out = tmp_path / "out"
    changes: dict[str, Any] = {"method": "lora", "seq_len": 96, "validation": str(chooser)}
    found = recover(settings(toys.dense, toys.instructions, out, save_dtype="fp32", **changes))
    model = load(str(out), device="cpu")
    total, count = 0.0, 0
    for one in instruction_examples(
        str(chooser), TextEncoding(model.tokenizer, vocab_size=257, eos=0), 96, seed=0
    ).sample(5):
        logits = model.model(input_ids=one["input_ids"][None]).logits[0, :-1]
        labels = one["labels"][1:]
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    assert found.selection_nll == pytest.approx(total / count, rel=1e-4)


def test_nan_stops_and_keeps_the_last_good_checkpoint(
    toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.recovery.trainer import RecoveryTrainer

    original = RecoveryTrainer.training_step

    def spoiled(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = original(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(RecoveryTrainer, "training_step", spoiled)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"diverged at step 4: the loss is nan.*checkpoint-2"):
        recover(settings(toys.pruned, toys.text, out))
    assert load(str(out / "checkpoints" / "checkpoint-2"), device="cpu").model is not None
    monkeypatch.undo()
    assert recover(settings(toys.pruned, toys.text, out, resume=True)).steps == 6


def test_full_disk_while_saving(toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracenas.recovery import state

    original = state.save_optimizer

    def full(directory: Path, *args: Any) -> None:
        if directory.name.endswith("-4"):
            raise OSError(28, "No space left on device")
        original(directory, *args)

    monkeypatch.setattr(state, "save_optimizer", full)
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"No space left on device; .*checkpoint-2 is intact"):
        recover(settings(toys.pruned, toys.text, out))
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["checkpoint-2"]
    monkeypatch.undo()
    recover(settings(toys.pruned, toys.text, out, resume=True))
    recover(settings(toys.pruned, toys.text, tmp_path / "straight"))
    assert log_of(out) == log_of(tmp_path / "straight")


def test_file_system_that_fails(toys: Toys, tmp_path: Path) -> None:
    """A limit on the size of files lets the weights pass, but not the optimizer: safetensors' own error."""
    import resource

    size = (toys.pruned / "model.safetensors").stat().st_size
    out, limits = tmp_path / "out", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(1.5 * size), limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write checkpoint .*: .*File too large.*no earlier checkpoint"):
            recover(settings(toys.pruned, toys.text, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((out / "checkpoints").iterdir())
    assert recover(settings(toys.pruned, toys.text, out, resume=True)).steps == 6


def test_wrong_input_is_told_before_anything_is_written(toys: Toys, tmp_path: Path, tokenizer: Any) -> None:
    out = tmp_path / "out"
    empty, tiny, other = tmp_path / "empty.txt", tmp_path / "tiny.txt", tmp_path / "other"
    empty.write_text("")
    tiny.write_text("too short")
    repeated, one = tmp_path / "repeated.txt", write_instructions(tmp_path / "one.jsonl", 1)
    repeated.write_text("the same words over and over again, " * 100)
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    broken = tmp_path / "broken"
    save_dense(broken, tokenizer)
    torn = weights_of(broken)
    del torn["model.norm.weight"]
    from safetensors.torch import save_file

    save_file(torn, broken / "model.safetensors", metadata={"format": "pt"})
    big = save_dense(tmp_path / "big", tokenizer, vocab_size=300)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("is empty", {"data": str(empty)}),
        ("too short for one sequence of 32", {"data": str(tiny)}),
        ("128 positions", {"seq_len": 129}),
        ("cannot be reached: 1 process with batch 3.*3 or 6", {"batch": 3}),
        ("fsdp shards over GPUs", {"fsdp": True}),
        ("bert", {"model": str(other)}),
        ("missing", {"model": str(broken)}),
        ("does not exist", {"data": "no-such.txt"}),
        ("report-to 'paper': accepted: tensorboard", {"report_to": "tensorboard,paper"}),
        ("'teacher' is required", {"method": "distill", "model": str(toys.dense)}),
        ("vocabulary has 300", {"method": "distill", "teacher": str(big)}),
        ("top-k 257", {"method": "distill", "teacher": str(toys.dense), "top_k": 257}),
        ("is not JSON", {"method": "lora", "data": str(write_text(tmp_path / "x.jsonl", 3))}),
        ("sequences of 32 tokens, 16", {"data": str(toys.tokens), "seq_len": 16}),
        ("together at most 1", {"warmup": 0.9, "decay": 0.2}),
        ("validation and text are both", {"validation": str(toys.held_out), "text": str(toys.held_out)}),
        ("are both .*wikitext-2-raw-v1@test", {"validation": "wikitext2@test", "text": "wikitext2"}),
        ("does not exist", {"validation": "no-such.txt"}),
        ("nothing is left to train on", {"data": str(repeated)}),
        ("nothing is left to train on", {"method": "lora", "data": str(one), "seq_len": 96}),
    ]
    for message, changes in wrong:
        with pytest.raises(UserError, match=message) as told:
            recover(settings(toys.pruned, toys.text, out).model_copy(update=changes))
        assert "\n" not in str(told.value)
        assert not out.exists() or not any(out.iterdir())


@pytest.mark.parametrize("name", ["text", "validation"])
def test_text_that_is_trained_on_is_told(
    name: str, toys: Toys, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "other.txt"
    other.symlink_to(toys.text)
    recover(settings(toys.pruned, toys.text, tmp_path / "out", max_steps=1, **{name: str(other)}))
    assert f"{name} {other} is what is trained on: its losses say nothing of other text" in caplog.messages
    caplog.clear()
    recover(settings(toys.pruned, toys.text, tmp_path / "apart", max_steps=1, **{name: str(toys.held_out)}))
    assert "trained on" not in caplog.text


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_row_that_is_wrong_ends_training_in_one_line(prefetch: bool, toys: Toys, tmp_path: Path) -> None:
    """The file is shuffled through a buffer of two rows, so that the third from the end is read while training."""
    from tracenas.data import sources

    rows = [json.dumps({"text": "some text " * 40}) for _ in range(30)]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([*rows, '{"text": null}', *rows[:3]]))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sources, "_WHOLE_FILE_BYTES", 0)
        patched.setattr(sources, "SHUFFLE_BUFFER", 2)
        patched.setattr("tracenas.data.packing._BATCH", 1)
        with pytest.raises(UserError) as told:
            recover(settings(toys.pruned, path, tmp_path / "out", prefetch=prefetch, max_steps=400))
    assert str(told.value) == f"'{path}', line 31: field 'text' holds a null, not a string"


def test_resume_needs_the_same_settings(toys: Toys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        interrupt(patched, at=1)
        with pytest.raises(Interrupted):
            recover(settings(toys.pruned, toys.text, out))
    with pytest.raises(UserError, match="holds a run; go on with --resume"):
        recover(settings(toys.pruned, toys.text, out))
    with pytest.raises(UserError, match=r"--resume with another learning-rate: the run has 0.01, not 0.001"):
        recover(settings(toys.pruned, toys.text, out, resume=True, learning_rate=1e-3))
    assert recover(settings(toys.pruned, toys.text, out, resume=True)).steps == 6
    with pytest.raises(UserError, match=r"--resume with another learning-rate: the run has 0.01, not 0.001"):
        recover(settings(toys.pruned, toys.text, out, resume=True, learning_rate=1e-3))  # now that it has ended


def test_prefetch_and_checkpointed_activations_change_nothing(toys: Toys, tmp_path: Path) -> None:
    recover(settings(toys.pruned, toys.text, tmp_path / "plain", max_steps=2))
    recover(
        settings(toys.pruned, toys.text, tmp_path / "other", max_steps=2, prefetch=True, activation_checkpointing=True)
    )
    assert log_of(tmp_path / "plain") == log_of(tmp_path / "other")
