"""`tracenas runs` and `tracenas resume` on directories as runs leave them: states, and what cannot be gone on with."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracenas.cli import invoke
from tracenas.commands.stored import StoredRun
from tracenas.config import RunConfig, SearchConfig
from tracenas.errors import UserError
from tracenas.locks import locked
from tracenas.pipeline.resume import same_settings

SEARCH: dict[str, Any] = {
    "kind": "search",
    "model": "/no/model",
    "data": "/no/text.txt",
    "params": "60%",
    "iterations": 5,
}
CANDIDATE = {"id": "a", "generation": 2, "status": "ok", "score": 1.0}


def leave(run: Path, settings: dict[str, Any], journal: list[dict[str, Any]] | None = None, **files: Any) -> Path:
    run.mkdir(parents=True)
    name = "recover.yaml" if settings.get("kind") == "recover" else "config.yaml"
    (run / name).write_text(yaml.safe_dump({**settings, "out": str(run)}))
    log = "log.jsonl" if settings.get("kind") == "recover" else "journal.jsonl"
    (run / log).write_text("".join(json.dumps(line) + "\n" for line in journal or []))
    for stem, content in files.items():
        (run / f"{stem}.json").write_text(json.dumps(content))
    return run


@contextmanager
def held(run: Path) -> Iterator[int]:
    """Another process that has the directory."""
    child = os.fork()
    if child == 0:
        with locked(run):
            time.sleep(60)
        os._exit(0)
    try:
        while not (run / ".lock").is_file() or not (run / ".lock").read_text():
            time.sleep(0.01)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_every_run_is_listed_with_its_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "stopped", SEARCH, [CANDIDATE])
    leave(tmp_path / "done", SEARCH, [CANDIDATE], best={}, summary={"evaluations": 1})
    leave(tmp_path / "cut", SEARCH, [CANDIDATE], best={}, summary={"evaluations": 2})
    leave(tmp_path / "trained", {"kind": "recover", "model": "org/name", "max_steps": 40}, [{"step": 12, "loss": 1.0}])
    leave(tmp_path / "study", {"kind": "study", "model": "m", "architectures": 8}, [CANDIDATE, CANDIDATE], study={})
    whole = {**SEARCH, "kind": "run", "eval_text": "t", "eval": {}}
    leave(tmp_path / "piped", whole, [CANDIDATE], best={}, summary={"evaluations": 1}, pruned={})
    failed = leave(tmp_path / "failed", SEARCH, [CANDIDATE])
    (failed / "error.log").write_text("tracenas error log\n")
    os.utime(failed / "error.log", (2e9, 2e9))
    (leave(tmp_path / "damaged", SEARCH, [CANDIDATE]) / "config.yaml").write_text("a: [")
    leave(tmp_path / "below" / "deeper", SEARCH)
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "config.yaml").write_text("model: mine\n")
    busy = leave(tmp_path / "busy", SEARCH)
    with held(busy) as child:
        assert invoke(["runs", str(tmp_path), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["runs"]
        assert found[0]["path"] == str(failed)  # last changed first
        rows = {Path(row["path"]).name: (row["state"], row["progress"]) for row in found}
        assert rows.pop("busy")[0].startswith(f"running (pid {child} on ")
        assert invoke(["resume", str(busy)]) == 2
        assert f"in use by pid {child} on " in capsys.readouterr().err
    assert rows.pop("damaged")[0].startswith("cannot be read: ")
    assert rows == {
        "stopped": ("interrupted", "generation 3 of 5, 1 candidates"),
        "done": ("finished", "1 candidates"),
        "cut": ("interrupted", "generation 3 of 5, 1 candidates"),
        "trained": ("interrupted", "step 12 of 40"),
        "study": ("finished", "2 of 8 architectures"),
        "piped": ("interrupted", "stage 3 of 4: comparison"),
        "failed": ("failed: error.log", "generation 3 of 5, 1 candidates"),
    }
    assert invoke(["runs", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "go on with: tracenas resume DIRECTORY" in shown and "org/name" in shown and "/no/model" not in shown


def test_one_odd_directory_does_not_hide_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(tmp_path / "whole", SEARCH, [CANDIDATE])
    leave(tmp_path / "no_steps", {"kind": "recover", "model": "m"}, [{"step": 1}])
    leave(tmp_path / "no_step", {"kind": "recover", "model": "m", "max_steps": 5}, [{"loss": 1.0}])
    leave(tmp_path / "no_generation", SEARCH, [{"id": "a"}])
    leave(tmp_path / "no_summary", SEARCH, [CANDIDATE], best={}, summary=[])
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "config.yaml").write_text("kind: Pod\n")
    assert invoke(["runs", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    rows = {Path(row["path"]).name: row["state"] for row in found}
    odd = "cannot be read: {} holds what `tracenas {}` does not write ({})"
    assert rows == {
        "whole": "interrupted",
        "no_steps": odd.format(tmp_path / "no_steps", "recover", "TypeError"),
        "no_step": odd.format(tmp_path / "no_step", "recover", "KeyError"),
        "no_generation": odd.format(tmp_path / "no_generation", "search", "KeyError"),
        "no_summary": "interrupted",
    }


def test_here_is_where_runs_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(leave(tmp_path / "one", SEARCH))
    assert invoke(["runs", "--json"]) == 0
    assert [Path(row["path"]) for row in json.loads(capsys.readouterr().out)["runs"]] == [tmp_path / "one"]
    monkeypatch.chdir(tmp_path.parent)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert invoke(["runs", str(empty)]) == 0
    assert capsys.readouterr().out.strip() == f"no run in {empty} or right below it"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_lock_of_a_dead_process_is_taken_over_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = leave(tmp_path / "run", SEARCH)
    with held(run) as child:
        pass
    assert (run / ".lock").is_file()
    assert invoke(["resume", str(run)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"warning: run directory {run}: taken over from pid {child} on ")
    assert "model /no/model is not there any more" in told[1] and len(told) == 2
    assert not (run / ".lock").exists()


def test_what_cannot_be_gone_on_with_is_told_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.touch()
    damaged = leave(tmp_path / "damaged", SEARCH)
    (damaged / "config.yaml").write_text("kind: search\na: [")
    foreign = leave(tmp_path / "foreign", {**SEARCH, "kind": "bake"})
    unknown = leave(tmp_path / "unknown", {**SEARCH, "sead": 1})
    before = leave(tmp_path / "before", {**SEARCH, "kind": "run"})
    cpu = leave(tmp_path / "cpu", {**SEARCH, "device": "cpu", "threads": 2})
    for argv, words in (
        ([tmp_path / "none"], f"run {tmp_path / 'none'}: no such directory"),
        ([file], f"run {file}: is a file"),
        ([empty], "holds no run"),
        ([damaged], f"{damaged / 'config.yaml'}: not YAML at line"),
        ([foreign], "of `tracenas bake`, which this version does not go on with"),
        ([unknown], "did you mean 'seed'"),
        ([before], "'text' is required: Held-out text"),
        ([cpu, "--threads", "3"], "threads 3: sums on a CPU depend on it; the run goes on with 2 threads"),
        ([cpu, "seed=1"], "unknown setting 'seed'"),
        ([cpu], f"{cpu / 'config.yaml'}: model /no/model is not there any more"),
    ):
        assert invoke(["resume", *map(str, argv)]) == 2
        told = capsys.readouterr().err.strip()
        assert words in told and "\n" not in told, told
    for directory, words in ((tmp_path / "none", "no such directory"), (file, "is a file")):
        assert invoke(["runs", str(directory)]) == 2
        assert words in capsys.readouterr().err


def test_settings_of_earlier_versions_count_from_where_the_run_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = leave(tmp_path / "work" / "runs" / "one", SEARCH)
    given = {**SEARCH, "model": "models/base", "data": "a.txt=0.5,b.txt=0.5", "out": "runs/one"}
    old = {**SearchConfig(**{k: v for k, v in given.items() if k != "kind"}).model_dump(mode="json"), "kind": "search"}
    (run / "config.yaml").write_text(yaml.safe_dump(old))
    work = tmp_path / "work"
    (work / "models" / "base").mkdir(parents=True)
    for name in ("a.txt", "b.txt"):
        (work / name).touch()
    monkeypatch.chdir(tmp_path)
    config = StoredRun.read(Path("work/runs/one")).build(SearchConfig, out=run)
    assert (config.model, config.data) == (str(work / "models/base"), f"{work / 'a.txt'}=0.5,{work / 'b.txt'}=0.5")
    monkeypatch.chdir(work)
    same_settings(run, config, ("out", "resume"))
    with pytest.raises(UserError, match="another data"):
        same_settings(run, config.model_copy(update={"data": str(work / "a.txt")}), ("out", "resume"))


def test_what_a_run_was_not_given_is_not_given_when_it_goes_on(tmp_path: Path) -> None:
    settings = {**SEARCH, "kind": "run", "text": "t", "batch": 8, "left_open": {"batch": None}}
    run = leave(tmp_path / "run", {**settings, "recover": {"method": "pretrain", "data": "/d.txt", "max_steps": 3}})
    config = StoredRun.read(run).build(RunConfig, out=run)
    assert config.batch is None and config.resume
    assert config.recover == {"method": "pretrain", "data": "/d.txt", "max_steps": 3}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_threads_are_free_on_a_gpu(device: str, tmp_path: Path) -> None:
    run = leave(tmp_path / "run", {**SEARCH, "device": device, "threads": 2})
    whole = StoredRun.read(run).build(SearchConfig, out=run)
    (run / "config.yaml").write_text(yaml.safe_dump(whole.model_dump(mode="json")))
    config = whole.model_copy(update={"threads": 3})
    with nullcontext() if device == "cuda" else pytest.raises(UserError, match="another threads"):
        same_settings(run, config, ("resume",))
