"""What a user meets around a run directory: other processes, signals, failures, and files of his own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tracenas.cli import invoke
from tracenas.data.tokens import save_tokens
from tracenas.demo import calibration_path, heldout_path, model_path
from tracenas.journal import Journal
from tracenas.locks import locked

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")]

SEARCH = ["search", str(model_path()), "--data", str(calibration_path()), "--params", "60%", "--threads", "1"]
SEARCH += ["--samples", "2", "--seq-len", "32", "--population", "3", "--elites", "1", "--iterations", "2"]
SEARCH += ["--proxy", "loss"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    assert invoke([*SEARCH, "--out", str(out)]) == 0
    return out


def names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_a_users_calibration_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tokens(tmp_path / "calibration.safetensors", torch.zeros(2, 32, dtype=torch.int64))
    before = (tmp_path / "calibration.safetensors").read_bytes()
    (tmp_path / "ordering.safetensors").write_bytes(b"mine")
    for more in ([], ["--resume"]):
        assert invoke([*SEARCH, "--out", str(tmp_path), *more]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert names(tmp_path) == ["calibration.safetensors", "ordering.safetensors"]
    assert (tmp_path / "calibration.safetensors").read_bytes() == before


@pytest.mark.parametrize("late", [False, True])
def test_a_refused_start_leaves_the_directory_free(late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tracenas.commands.search import stage
    from tracenas.errors import UserError

    out = tmp_path / "run"
    if late:
        with monkeypatch.context() as patched:

            def same_model(*_: Any) -> None:
                raise UserError("not finite")

            patched.setattr(stage, "same_model", same_model)
            assert invoke([*SEARCH, "--out", str(out)]) == 2
    else:
        assert invoke([*SEARCH, "--out", str(out), "--data", str(tmp_path / "typo.txt")]) == 2
    assert not out.exists()
    assert invoke([*SEARCH, "--out", str(out)]) == 0


def test_one_search_at_a_time(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = os.fork()
    if child == 0:
        with locked(finished):
            time.sleep(60)
        os._exit(0)
    try:
        while not (finished / ".lock").is_file() or not (finished / ".lock").read_text():
            time.sleep(0.01)
        for command in (SEARCH, ["run", *SEARCH[1:], "--text", str(heldout_path())]):
            assert invoke([*command, "--out", str(finished), "--resume"]) == 2
            assert f"in use by pid {child} on " in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert invoke([*SEARCH, "--out", str(finished), "--resume"]) == 0
    assert not (finished / ".lock").exists()


def test_failed_candidates_and_crashes_leave_their_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.scoring.evaluator import Evaluator

    out, real, calls = tmp_path / "run", Evaluator.measure, [0]

    def measure(self: Evaluator, arch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise RuntimeError("a shape that nobody expected\nand a second line")
        if calls[0] == 4:
            raise KeyError("a defect")
        return real(self, arch)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "measure", measure)
        assert invoke([*SEARCH, "--out", str(out), "--race", "off"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told == f"tracenas: unexpected KeyError: a defect; the traceback is in {out / 'error.log'}"
    text = (out / "error.log").read_text()
    for words in ("in measure", "and a second line", "KeyError: 'a defect'", "in search_target"):
        assert words in text
    failed = [r for r in Journal(out / "journal.jsonl").read() if r["status"] == "failed"]
    assert [r["reason"] for r in failed] == ["RuntimeError: a shape that nobody expected"]
    assert invoke([*SEARCH, "--out", str(out), "--race", "off", "--resume"]) == 0


def test_a_crash_of_prune_is_in_nobodys_way(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.models.checkpoints import writing as checkpoint

    out = tmp_path / "pruned"
    argv = ["prune", str(model_path()), "--arch", str(finished / "best.json"), "--out", str(out)]
    with monkeypatch.context() as patched:

        def write_shards(*_: Any) -> None:
            raise AssertionError("a defect")

        patched.setattr(checkpoint, "write_shards", write_shards)
        assert invoke(argv) == 1
    assert names(out) == ["error.log"]
    assert "in write_shards" in (out / "error.log").read_text()
    assert invoke(argv) == 0
    assert "error.log" not in names(out) and "config.json" in names(out)
    assert names(tmp_path) == ["pruned"]


def test_a_crash_without_a_directory_is_told_in_full(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from tracenas.commands.plan import command as plan

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(plan, "open_source", broken)
    monkeypatch.chdir(tmp_path)
    assert invoke(["plan", str(model_path()), "--params", "60%"]) == 1
    err = capsys.readouterr().err
    assert "in broken" in err
    assert err.splitlines()[-1] == "tracenas: unexpected ZeroDivisionError: a defect"
    assert not names(tmp_path)


def test_sigterm_ends_like_ctrl_c(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a run"
    argv = [*SEARCH, "--out", str(out), "--iterations", "400", "--population", "40"]
    child = os.fork()
    if child == 0:
        os._exit(invoke(argv))
    while not (out / "journal.jsonl").is_file():
        time.sleep(0.05)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    told = capfd.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("tracenas: interrupted; go on with: tracenas resume ")
    assert f"'{out}'" in told
    assert Journal(out / "journal.jsonl").read()
    assert not [name for name in names(out) if name.startswith(".")]


def test_an_environment_of_a_launch_that_is_none(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    argv = ["eval", str(model_path()), "--text", str(heldout_path()), "--windows", "1", "--seq-len", "32", "--json"]
    for command in (["plan", str(model_path()), "--params", "60%", "--json"], argv):
        assert invoke(command) == 0
        assert json.loads(capsys.readouterr().out)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in (["plan", str(model_path()), "--params", "60%"], ["report", str(finished)]):
        assert invoke(command) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and "without torchrun" in err


def test_a_users_checkpoint_in_a_run_stays(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "pruned").mkdir()
    (run / "pruned" / "config.json").write_text("the user's")
    argv = ["run", *SEARCH[1:], "--text", str(heldout_path()), "--out", str(run), "--resume"]
    assert invoke(argv) == 2
    assert f"checkpoint directory {run / 'pruned'}: exists and is not empty" in capsys.readouterr().err
    assert (run / "pruned" / "config.json").read_text() == "the user's"


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    argv = [sys.executable, "-m", "tracenas.cli", "plan", str(model_path()), "--params", "60%", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "tracenas: cannot write or read a file: No space left on device\n"
