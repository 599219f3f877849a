"""What plan says of a run's comparison and evaluation: windows, questions, and the time of every model."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tracenas.cli import invoke
from tracenas.commands.plan.evaluation import reading
from tracenas.config import PlanConfig, PruneConfig, build
from tracenas.data.tokens import save_tokens
from tracenas.demo import heldout_path, model_path
from tracenas.errors import UserError
from tracenas.evaluation.task_sizes import TASK_SIZES

TASKS = Path(__file__).parents[1] / "data" / "tasks"


def test_windows_are_counted_in_files_and_known_data_sets(tmp_path: Path) -> None:
    plain, packed, rows, tokens = (tmp_path / name for name in ("a.txt", "a.txt.gz", "a.jsonl", "a.safetensors"))
    text = "a word and another\n" * 2_000
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    rows.write_text("".join(json.dumps({"body": line + "\n"}) + "\n" for line in text.splitlines()))
    save_tokens(tokens, torch.zeros(7, 64, dtype=torch.long))
    there = int(len(text) / 4.1) // 64
    assert reading(str(plain), None, 64).windows == there > 100
    assert reading(str(packed), None, 64).windows == there
    assert reading(str(rows), None, 64, text_field="body").windows == there
    assert reading(str(plain), 5, 64).windows == 5
    assert reading(str(plain), None, 64, {"windows": 9, "seq_len": 32}).windows == 9
    assert reading(str(tokens), None, 64).windows == 7
    wikitext = reading("wikitext2", None, 2048)
    assert 0.9 * 1_290_590 / 4.1 < wikitext.windows * wikitext.length < 1_290_590 / 4.1
    with pytest.raises(UserError, match=r"gone\.txt"):
        reading("./gone.txt", None, 64)


def test_what_is_not_known_before_it_is_fetched_is_named() -> None:
    assert reading("c4", None, 64).unknown == ("c4",) and reading("c4", None, 64).windows == 0
    assert reading("c4", 12, 64) == reading("wikitext2", 12, 64)
    asked = reading(None, None, 64, {"tasks": "piqa,gsm8k"})
    assert asked.unknown == ("gsm8k",) and asked.tasks == ((1838, 60),)


def test_questions_of_tasks() -> None:
    size = TASK_SIZES["arc_challenge"]
    paper = reading(None, None, 64, {"suite": "paper"})
    assert len(paper.tasks) == 9 and (1172, size.tokens + 25 * size.shot) in paper.tasks
    assert reading(None, None, 64, {"tasks": "mmlu,piqa", "limit": 10}).tasks == ((570, 133), (10, 60))
    local = reading(None, None, 64, {"tasks": "piqa:2", "task_data": TASKS}).tasks
    assert local == ((len((TASKS / "piqa" / "validation.jsonl").read_text().splitlines()), 60 + 2 * 39),)


def stages(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    command = ["plan", str(model_path()), "--params", "60%", "--threads", "1", "--seq-len", "64", "--json", *argv]
    assert invoke(command) == 0
    return json.loads(capsys.readouterr().out)["time"]


@pytest.fixture(autouse=True)
def a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fixed speed, so that times can be compared."""
    from tracenas.benchmark import machine

    rates = machine.Rates(1e9, 1e9, 1e9, 1e9, 1e9, 1e-9, 1e-9)
    monkeypatch.setattr(machine, "measure_rates", lambda *_, **__: rates)


def test_every_model_of_a_run_is_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", str(heldout_path()), "--windows", "8"]
    assert "eval" not in (plain := stages(capsys, *text)["stages"]) and plain["comparison"] > 0
    one = stages(capsys, *text, "--random-architectures", "0")["stages"]
    two = stages(capsys, *text, "--random-architectures", "2")["stages"]
    assert plain["comparison"] - two["comparison"] == pytest.approx((two["comparison"] - one["comparison"]) / 2)
    assert one["comparison"] > one["prune"]
    evaluated = stages(capsys, *text, "eval.seq_len=64")["stages"]["eval"]
    assert evaluated == pytest.approx(stages(capsys, *text, "eval.windows=4")["stages"]["eval"] * 2)
    training = ["recover.method=pretrain", "recover.data=d", "recover.max_steps=1", "recover.seq_len=64"]
    recovered = stages(capsys, *text, "eval.seq_len=64", *training)["stages"]
    rivals = stages(capsys, *text, "eval.seq_len=64", *training, "--recover-rivals")["stages"]
    assert list(rivals) == ["search", "prune", "comparison", "recover", "eval"]
    assert rivals["recover"] == pytest.approx(3 * recovered["recover"])
    cut = recovered["eval"] - evaluated
    assert 0 < cut < evaluated - cut  # a cut model is faster than the base
    assert rivals["eval"] - recovered["eval"] == pytest.approx(2 * cut)


def test_blocks_that_are_trained_take_time(capsys: pytest.CaptureFixture[str]) -> None:
    text = ["--text", str(heldout_path()), "--windows", "8"]
    blocks = "prune.reconstruct=blocks"
    plain, few, many, default = (
        stages(capsys, *text, *more)["stages"]
        for more in (
            [],
            [blocks, "prune.reconstruct_steps=10"],
            [blocks, "prune.reconstruct_steps=30"],
            [blocks],
        )
    )
    assert plain["prune"] < few["prune"] < many["prune"] < default["prune"]
    steps = PruneConfig.model_fields["reconstruct_steps"].default
    each = (many["prune"] - few["prune"]) / 20
    assert default["prune"] - few["prune"] == pytest.approx((steps - 10) * each)
    assert many["comparison"] - few["comparison"] == pytest.approx(20 * each)  # of uniform, which is trained, too
    assert stages(capsys, *text, "prune.ridge=0.1")["stages"]["prune"] == plain["prune"]
    logits, none = (stages(capsys, *text, f"prune.scales={kind}")["stages"]["prune"] for kind in ("logits", "none"))
    assert none < logits < plain["prune"]
    assert invoke(["plan", str(model_path()), "prune.reconstruct=all", "--no-timing"]) == 2
    assert "prune: reconstruct 'all'" in capsys.readouterr().err


def test_tasks_take_time_and_unknown_ones_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    few = stages(capsys, "eval.tasks=piqa", "eval.limit=10")
    many = stages(capsys, "eval.tasks=piqa", "eval.limit=20")
    assert many["stages"]["eval"] == pytest.approx(2 * few["stages"]["eval"]) and few["without"] == []
    assert stages(capsys, "eval.tasks=piqa,gsm8k", "eval.limit=10") == {**few, "without": ["gsm8k"]}
    assert invoke(["plan", str(model_path()), "--params", "60%", "eval.tasks=gsm8k"]) == 0
    assert "without gsm8k, whose size is not known before it is fetched" in capsys.readouterr().out


def test_settings_of_eval_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="eval.task: unknown setting: did you mean 'tasks'"):
        build(PlanConfig, {"model": "m", "eval": {"task": "piqa"}})
    assert invoke(["plan", str(model_path()), "--params", "60%", "eval.suite=papers"]) == 2
    assert "unknown suite 'papers'" in capsys.readouterr().err


def test_every_size_of_a_front_goes_through_all_stages(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    train = {"method": "pretrain", "max_steps": 1, "global_batch": 1, "seq_len": 64}
    settings = {"model": str(model_path()), "data": "text.txt", "text": str(heldout_path()), "windows": 8, "out": "o"}
    sections = {"recover": train, "eval": {"seq_len": 64}, "bench": {"prompt": 32, "new_tokens": 4, "trials": 3}}
    shared = {**settings, **sections, "seq_len": 64, "threads": 1}

    def planned(**further: Any) -> Any:
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump({**shared, **further}))
        assert invoke(["plan", "--config", str(file), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    one = {size: planned(params=size) for size in ("60%", "80%")}
    both = planned(front=True, checkpoints="60%,80%")
    assert both["checkpoints"] == {size: found["budget"]["limit"] for size, found in one.items()}
    whole, parts = both["time"]["stages"], [found["time"]["stages"] for found in one.values()]
    assert list(whole) == ["search", "checkpoints", "recover", "eval", "bench"]
    assert whole["recover"] == pytest.approx(sum(part["recover"] for part in parts), rel=1e-3)
    base = {"eval": 0.0, "bench": 0.0}
    for name in base:  # the base once
        base[name] = sum(part[name] for part in parts) - whole[name]
        assert 0 < base[name] < whole[name] / 2
    assert sum(part["prune"] for part in parts) < whole["checkpoints"] < sum(part["comparison"] for part in parts)
    (disk,) = (need["needed"] for need in both["fits"] if need["name"] == "disk")
    each = [next(need["needed"] for need in found["fits"] if need["name"] == "disk") for found in one.values()]
    states = 3 * 16 * one["80%"]["uniform"]["params"]  # of one recovery at a time
    assert disk == pytest.approx(each[1] + 2 * 4 * one["60%"]["uniform"]["params"], rel=1e-3) and disk < sum(each)
    kept = planned(front=True, checkpoints="60%,80%", recover={**train, "keep_checkpoints": True})
    assert next(need["needed"] for need in kept["fits"] if need["name"] == "disk") == disk + states


def test_the_time_of_bench_is_told_for_torch(capsys: pytest.CaptureFixture[str]) -> None:
    few, many = (stages(capsys, f"bench.trials={n}", "bench.warmup=0", "bench.no_memory=true") for n in (2, 6))
    assert many["stages"]["bench"] == pytest.approx(3 * few["stages"]["bench"])
    found = stages(capsys, "bench.backend=llama.cpp")
    assert "bench" not in found["stages"] and found["without"] == ["bench in llama.cpp"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--front", "eval.seq_len=64"], "'checkpoints' is required with front"),
        (["--front", "--checkpoints", "40%"], "are below the front's lower end"),
        (["--params", "60%", "--checkpoints", "40%"], "checkpoints needs front"),
        (["--params", "60%", "--smallest", "40%"], "costs and smallest need front"),
    ],
)
def test_what_is_no_front_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], message: str) -> None:
    assert invoke(["plan", str(model_path()), *options, "--no-timing"]) == 2
    assert message in capsys.readouterr().err
