"""`tracenas run` with recovery, evaluation and speed: composed, resumed exactly, refused where settings changed."""

import json
from pathlib import Path
from typing import Any

import pytest
from recovery_toys import log_of, write_instructions, write_text
from test_recover import Interrupted, interrupt
from tiny import save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

TRAIN = """
recover:
  method: distill
  max_steps: 4
  global_batch: 2
  seq_len: 16
  log_every: 1
  save_every: 2
  windows: 4
"""
AFTER = "recover_rivals: true\neval: {}\nbench: {prompt: 8, new_tokens: 3, trials: 2, no_memory: true}\n"
SECTIONS = TRAIN + "compensate: sequential\n" + AFTER


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    home = tmp_path_factory.mktemp("stages")
    save_tiny(home / "model", "llama", tokenizer)
    write_text(home / "text.txt", 60)
    write_text(home / "held-out.txt", 10, seed=1)
    return home


def command(home: Path, out: Path, sections: str, *more: str) -> list[str]:
    settings = {
        "model": home / "model",
        "data": home / "text.txt",
        "text": home / "held-out.txt",
        "out": out,
        "params": "60%",
        "samples": 4,
        "seq_len": 32,
        "windows": 4,
        "population": 4,
        "elites": 2,
        "iterations": 2,
        "random_architectures": 1,
        "threads": 1,
        "device": "cpu",
    }
    file = out.with_name(f"{out.name}{len(sections)}.yaml")
    file.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()) + sections)
    return ["run", "--config", str(file), *more]


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """A run with everything."""
    assert invoke(command(home, home / "whole", SECTIONS)) == 0
    return home / "whole"


def complaint(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_everything_is_there_and_consistent(home: Path, finished: Path) -> None:
    rows = {row["name"]: row for row in read(finished / "summary.json")["comparison"]}
    assert list(rows) == ["base", "uniform", "random 1", "found"]
    assert all(set(rows[n]) >= {"checkpoint", "recovered"} for n in ("uniform", "random 1", "found"))
    assert {row["checkpoint"]["realisation"] for row in rows.values() if "checkpoint" in row} == {"sequential"}
    evaluated = read(finished / "evaluation.json")["results"]
    assert [Path(r["model"]).relative_to(home).parts[1:] for r in evaluated[1:]] == [
        ("pruned",),
        ("recovered",),
        ("rivals", "uniform", "recovered"),
        ("rivals", "random-1", "recovered"),
    ]
    by_place = [r["nll"] for r in evaluated]
    expected = [rows["base"], rows["found"]["checkpoint"], *(rows[n]["recovered"] for n in ("found", "uniform"))]
    assert by_place[:4] == pytest.approx([row["nll"] for row in expected], abs=1e-5)
    pruned = read(finished / "pruned.json")
    assert pruned["compensation"]["method"] == "sequential"
    assert rows["found"]["checkpoint"]["loss"] == pytest.approx(pruned["loss"])
    assert pruned["scored_loss"] == pytest.approx(read(finished / "best.json")["loss"])
    timed = read(finished / "bench.json")["models"]
    assert len(timed) == 4 and timed[1]["model"].endswith("recovered")


def test_rivals_are_pruned_and_recovered_as_the_found_one(finished: Path) -> None:
    import yaml

    own = yaml.safe_load((finished / "recovered" / "recover.yaml").read_text())
    rows = {row["name"]: row for row in read(finished / "comparison.json")}
    for name, home in (("uniform", "uniform"), ("random 1", "random-1")):
        theirs = yaml.safe_load((finished / "rivals" / home / "recovered" / "recover.yaml").read_text())
        assert {key for key in own if own[key] != theirs[key]} == {"model", "out"}
        pruned = read(finished / "rivals" / home / "pruned.json")
        assert pruned["scored_loss"] == pytest.approx(rows[name]["loss"], abs=1e-4)
        assert pruned["params"] == rows[name]["params"]
    uniform = read(finished / "rivals" / "uniform" / "pruned.json")
    assert uniform["loss"] == pytest.approx(rows["uniform"]["checkpoint"]["loss"], abs=1e-4)
    table = {row["name"]: row for row in read(finished / "recovered.json")}
    assert table["uniform"]["pruned"]["nll"] == pytest.approx(rows["uniform"]["checkpoint"]["nll"], abs=1e-4)


def test_the_report_and_the_terminal_show_all_of_it(
    home: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (finished / "report.html").read_text()
    for words in (">Compensation<", ">Recovery<", ">Evaluation<", ">Speed and memory<", "stage by stage"):
        assert words in page
    assert "All recovered with the same settings: found" in page
    assert invoke(["report", str(finished)]) == 0
    assert (finished / "report.html").read_text() == page
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    capsys.readouterr()
    assert invoke(command(home, finished, SECTIONS, "--resume")) == 0  # nothing is done again
    said = capsys.readouterr().out
    again = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert again <= {"best.json", "summary.json", "report.html"}
    assert "compensated (sequential)" in said and "all with exactly the same settings" in said
    assert invoke(command(home, finished, SECTIONS, "--resume", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"evaluation", "bench", "recovered", "comparison", "pruned", "search", "report"} == set(told)


def test_killed_while_recovering_and_resumed(
    home: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "killed"
    with monkeypatch.context() as patched:
        interrupt(patched, at=3)
        patched.setenv("TRACENAS_TRACEBACK", "1")
        with pytest.raises(Interrupted):
            invoke(command(home, out, SECTIONS))
    assert not (out / "recovered.json").exists() and (out / "recovered" / "checkpoints").is_dir()
    assert invoke(command(home, out, SECTIONS, "--resume")) == 0
    for place in ("recovered", "rivals/uniform/recovered"):
        assert log_of(out / place) == log_of(finished / place)
    assert read(out / "comparison.json") == read(finished / "comparison.json")
    nll = [[row["nll"] for row in read(run / "evaluation.json")["results"]] for run in (out, finished)]
    assert nll[0] == nll[1]


def test_other_settings_are_refused_for_finished_stages(
    home: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resumed = command(home, finished, SECTIONS, "--resume")
    for change, words in (
        ("recover.max_steps=5", r"another recover.max_steps: the finished stage has 4, not 5; remove "),
        ("bench.trials=3", "another bench.trials: the finished stage has 2, not 3"),
        ("eval.windows=3", "another eval.windows: the finished stage has None, not 3"),
        ("compensate=none", "another prune.compensate: the finished stage has 'sequential', not 'none'"),
        ("windows=3", "another windows: the finished stage has 4, not 3"),
        ("seed=3", "another seed"),
    ):
        assert words in complaint(capsys, [*resumed, change])
    results = ("recovered.json", "evaluation.json", "bench.json")
    kept = {name: (finished / name).read_bytes() for name in (*results, "stages.json")}
    for name in results:
        (finished / name).unlink()
    told = complaint(capsys, [*resumed, "recover.max_steps=5"])  # the checkpoint is there, from other settings
    assert "another max-steps: the run has 4, not 5; remove " in told and "/recovered to recover again" in told
    for name, content in kept.items():
        (finished / name).write_bytes(content)
    (finished / "bench.json").rename(finished / "b.json")
    (finished / "evaluation.json").rename(finished / "e.json")
    (finished / "b.json").rename(finished / "bench.json")
    assert "bench.json is there, but the stage eval before it has to be run" in complaint(capsys, resumed)
    (finished / "e.json").rename(finished / "evaluation.json")
    assert invoke(resumed) == 0


def test_a_section_can_be_added_later(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert invoke(command(home, out, "", "compensate=auto", "proxy=phi")) == 0
    assert "checkpoint" not in read(out / "comparison.json")[-1] and not (out / "recovered").exists()
    assert read(out / "pruned.json")["compensation"] is None
    more = [
        "--resume",
        "compensate=auto",
        "proxy=phi",
        "recover.method=pretrain",
        "recover.max_steps=2",
        "recover.global_batch=2",
    ]
    assert invoke(command(home, out, "", *more)) == 0
    assert read(out / "summary.json")["comparison"][-1]["recovered"]["perplexity"] > 1
    assert read(out / "recovered" / "recovery.json")["steps"] == 2
    assert ">Compensation<" not in (out / "report.html").read_text()


def test_found_and_uniform_are_each_written_as_they_are_best(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert invoke(command(home, out, "", "proxy=phi")) == 0
    told = capsys.readouterr().out
    choice = read(out / "pruned.json")["choice"]
    assert choice["written"] == min(choice["losses"], key=choice["losses"].get)
    assert "compensated (best)" in told and f"realisation {choice['written']} (held-out loss: plain " in told
    rows = {row["name"]: row["checkpoint"] for row in read(out / "comparison.json") if "checkpoint" in row}
    assert set(rows) == {"uniform", "found"} and rows["found"]["written"] == choice["written"]
    assert all(row["realisation"] == "best" and {"loss", "nll"} <= set(row) for row in rows.values())


def test_without_text_to_compare_on_checkpoints_are_as_scored(
    home: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.data.tokens import load_tokens, save_tokens

    data = tmp_path / "rows.safetensors"
    argv = command(home, tmp_path / "first", "", "proxy=phi", "iterations=1", "random_architectures=0")
    save_tokens(data, load_tokens(finished / "calibration.safetensors"))
    assert invoke([*argv, f"data={data}", f"out={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().err
    assert "no held_out.safetensors: '" in told and "nothing to compare refits on, checkpoints are written as" in told
    pruned = read(tmp_path / "run" / "pruned.json")
    assert pruned["choice"] == {"written": "plain", "losses": {}} and pruned["loss"] == pytest.approx(
        read(tmp_path / "run" / "best.json")["loss"], abs=1e-4
    )


def test_wrong_sections_are_told_before_the_search(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    plain, train = command(home, out, ""), command(home, out, TRAIN)
    write_instructions(home / "x.jsonl")
    for argv, words in (
        ([*train, "recover.stepz=3"], "recover.stepz: unknown setting"),
        ([*train, "recover.max_step=3"], "did you mean 'max_steps'"),
        ([*train, "recover.model=x"], "recover.model: is the run's to set"),
        ([*train, "recover.max_steps=none"], "recover: max-steps 'none': accepted: a whole number"),
        ([*train, "recover=null", "recover_rivals=true"], "needs the section recover"),
        ([*train, "recover.method=lora"], "recover.data is required for lora"),
        ([*train, "recover.micro_batch=3"], "cannot be reached"),
        ([*train, "recover.seq_len=65"], "64 positions"),
        ([*train, "recover.fsdp=true", "recover.processes=2"], "fsdp shards over GPUs"),
        ([*train, "recover.data=nowhere.txt"], "nowhere.txt"),
        ([*plain, "prune.seed=3"], "prune.seed: is the run's to set"),
        ([*plain, "bench.prompt=64"], "64 positions"),
        ([*plain, "eval.suite=papers"], "did you mean 'paper'"),
        ([*plain, "bench=fast"], "expected settings of its stage"),
        ([*plain, "recover_rivals=true"], "needs the section recover"),
        ([*plain, "compensate=wanda"], "compensate 'wanda'"),
    ):
        assert words in complaint(capsys, argv), words
        assert not out.exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "recover.processes=N" in complaint(capsys, plain)


@pytest.mark.slow
def test_an_unknown_task_is_told_before_the_search(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slow, because lm-eval's index of tasks is."""
    assert "piqqa" in complaint(capsys, command(home, tmp_path / "run", "", "eval.tasks=piqqa"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_are_started_by_the_run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two gloo processes: the log of one, within 1e-4; and what they say leaves stdout alone."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    for count in (1, 2):
        more = (f"recover.processes={count}", "recover.micro_batch=1")
        assert invoke(command(home, tmp_path / f"run{count}", TRAIN, *more)) == 0
    losses = [[r["loss"] for r in log_of(tmp_path / f"run{n}" / "recovered") if "loss" in r] for n in (1, 2)]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], abs=1e-4)
