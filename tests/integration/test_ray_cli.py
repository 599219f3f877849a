"""Searches in a Ray cluster: the same journal as one process, whatever becomes of the actors and of the driver."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_head import NEEDS_RAY, ray_head
from run_journals import SCORED, journal, kill_workers, search, started
from tiny import save_families

from tracenas.cli import invoke

pytestmark = [pytest.mark.integration, NEEDS_RAY]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("ray"), ("llama", "mixtral"), tokenizer)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of one with room for two actors."""
    with ray_head(2) as address:
        yield address


@pytest.mark.slow
@pytest.mark.parametrize(("model", "options"), SCORED)
def test_two_actors_write_the_same_journal(
    home: Path, tmp_path: Path, cluster: str, model: str, options: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert invoke(search(home, one, *options, model=model)) == 0
    assert invoke(search(home, two, *options, "--workers", "2", "--ray", cluster, model=model)) == 0
    assert journal(two) == journal(one)
    best = [json.loads((run / "best.json").read_text()) for run in (one, two)]
    assert best[0] == best[1]
    assert "raylet" not in capfd.readouterr().out


def test_other_weights_on_a_node_are_refused(
    home: Path, tmp_path: Path, cluster: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.pipeline import distributed

    monkeypatch.setattr(distributed, "model_identity", lambda _: {"model": "that of other files"})
    assert invoke(search(home, tmp_path / "run", "--ray", cluster)) == 2
    assert "its files hold other weights than where the search runs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_is_the_same_by_actors(home: Path, tmp_path: Path, cluster: str) -> None:
    argv = ["study", str(home / "llama"), "--data", str(home / "text.txt"), "--text", str(home / "text.txt")]
    argv += ["--params", "80%", "--samples", "4", "--seq-len", "32", "--proxies", "phi,loss_compensated"]
    argv += ["--rank", "4", "--compensate-samples", "6", "--architectures", "4", "--steps", "2", "--recover-batch", "2"]
    argv += ["--windows", "4", "--resamples", "50", "--threads", "1", "--targets", "recovery,supernet_lora"]
    argv += ["--lora-steps", "2"]
    for name, options in (("one", ()), ("two", ("--ray", cluster, "--workers", "auto"))):
        assert invoke([*argv, "--out", str(tmp_path / name), *options]) == 0
    one, two = (journal(tmp_path / name) for name in ("one", "two"))
    for record in (*one, *two):
        del record["proxy_seconds"]
        for target in record["targets"].values():
            del target["seconds"]
    assert one == two and len(one) == 4


@pytest.mark.slow
def test_actors_that_are_killed_cost_nothing(home: Path, tmp_path: Path) -> None:
    """Both are killed, one after the other, in the middle of the search."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert invoke(search(home, whole, "--samples", "32")) == 0
    process = started(search(home, run, "--samples", "32", "--ray", "auto", "--workers", "2"))
    killed = kill_workers(process, run, _actors, most=2)
    assert process.returncode == 0
    assert killed and journal(run) == journal(whole)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_ended_goes_on(home: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Its own cluster ends with it, and another one goes on where it was."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert invoke(search(home, whole)) == 0
    process = started(search(home, run, "--ray", "auto"))
    while process.poll() is None and not (run / "journal.jsonl").is_file():
        time.sleep(0.05)
    below = {pid for pid in _below(process.pid) if b"Agent" not in _command(pid)}  # those wait for a minute
    process.send_signal(how)
    process.wait()
    assert process.returncode in (-signal.SIGKILL, 130, 143)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() and _running(pid) for pid in below):
        assert time.monotonic() < deadline, "the cluster outlives the process that started it"
        time.sleep(0.1)
    before = journal(run)
    assert invoke([*search(home, run, "--ray", "auto"), "--resume"]) == 0
    assert len(before) < len(journal(run)) and journal(run) == journal(whole)


def _below(parent: int) -> set[int]:
    """All processes below one."""
    try:
        children = {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}
    except OSError:
        return set()
    return children.union(*(_below(child) for child in children))


def _actors(parent: int) -> set[int]:
    return {pid for pid in _below(parent) if b"RemoteWorker" in _command(pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
