"""Searches with several workers: the same journal as with one, whatever becomes of the workers."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_journals import SCORED, journal, kill_workers, search, started
from tiny import save_families

from tracenas.cli import invoke
from tracenas.config import SearchConfig
from tracenas.pipeline import distributed, workers

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("workers"), ("llama", "mixtral"), tokenizer)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are."""
    monkeypatch.setattr(workers, "available_cores", lambda: 2)


@pytest.mark.parametrize(("model", "options"), SCORED)
def test_two_workers_write_the_same_journal(home: Path, tmp_path: Path, model: str, options: tuple[str, ...]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert invoke(search(home, one, *options, model=model)) == 0
    assert invoke(search(home, two, *options, "--workers", "2", model=model)) == 0
    assert journal(two) == journal(one)
    best = [json.loads((run / "best.json").read_text()) for run in (one, two)]
    assert best[0] == best[1]


def test_a_run_goes_on_with_another_number_of_workers(home: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert invoke(search(home, whole)) == 0
    assert invoke(search(home, run, "--workers", "2")) == 0
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    (run / "journal.jsonl").write_text("".join(lines[:8]))
    for name in ("best.json", "summary.json", "selection.json"):
        (run / name).unlink(missing_ok=True)
    assert invoke([*search(home, run), "--resume"]) == 0
    assert journal(run) == journal(whole)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU stands in for both."""
    for user in ("pipeline.workers", "commands.search.workers", "commands.search.stage"):
        monkeypatch.setattr(f"tracenas.{user}.gpus_of", lambda device: ("cpu", "cpu"))


def test_a_worker_on_each_gpu_writes_the_same_journal(
    home: Path, tmp_path: Path, two_gpus: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, placed = tmp_path / "one", tmp_path / "two", []
    pool = distributed.WorkerPool

    def recorded(*args: Any, places: Any, **kwargs: Any) -> Any:
        placed.append(places)
        return pool(*args, places=places, **kwargs)

    monkeypatch.setattr(distributed, "WorkerPool", recorded)
    assert invoke(search(home, one)) == 0
    assert invoke(search(home, two, "--workers", "8")) == 0
    assert placed == [("cpu", "cpu")] and journal(two) == journal(one)
    assert "workers 8: one on each of cpu, cpu, so 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "asked", "there", "devices"),
    [
        ("auto", "auto", 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", 2, 3, ("cuda:0", "cuda:1")),
        ("cuda", 8, 3, ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:1", "auto", 3, ("cuda:1",)),
        ("auto", "auto", 0, ()),
        ("cpu", 2, 3, ()),
    ],
)
def test_which_gpus_workers_have(
    monkeypatch: pytest.MonkeyPatch, device: str, asked: Any, there: int, devices: tuple[str, ...]
) -> None:
    import torch

    monkeypatch.setattr(workers, "_DRIVERS", ("/",))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    config = SearchConfig(model="m", data="d", params="60%", out=Path("o"), device=device, workers=asked)
    found = workers.gpus_of(device)
    number = workers.with_workers(config, on_gpus=True).workers
    assert found[:number] == devices
    assert number == (len(devices) or 2)  # cores, of the CPU


@pytest.mark.slow
def test_workers_that_are_killed_cost_nothing(home: Path, tmp_path: Path) -> None:
    """Every process that appears below the search is killed once, while it lives."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert invoke(search(home, whole, "--samples", "32")) == 0
    process = started(search(home, run, "--samples", "32", "--workers", "2"))
    killed = kill_workers(process, run, _workers, most=3)
    assert process.returncode == 0
    assert killed and journal(run) == journal(whole)


def _workers(parent: int) -> set[int]:
    """Processes below `parent` that serve a pool: those below its fork server."""
    children = _children(parent)
    return {grandchild for child in children for grandchild in _children(child)}


def _children(parent: int) -> set[int]:
    try:
        return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}
    except OSError:
        return set()


def test_more_workers_than_cores_are_bounded_and_it_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 1)
    assert invoke(search(home, tmp_path / "run", "--workers", "64")) == 0
    assert "workers 64: this machine has cores for 1" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_other_numbers_are_refused(home: Path, tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(search(home, tmp_path / "run", "--workers", value)) == 2
    assert "workers" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_too_little_shared_memory_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas import shared_tensors

    monkeypatch.setattr(shared_tensors.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert invoke(search(home, tmp_path / "run", "--workers", "2")) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "of shared memory" in line and "--shm-size" in line


def test_a_search_for_ratios_is_the_same_with_workers(home: Path, tmp_path: Path) -> None:
    argv = ["sparsify", str(home / "llama"), "--metric", "wanda", "--sparsity", "0.5", "--ratios", "search"]
    argv += ["--data", str(home / "text.txt"), "--samples", "4", "--seq-len", "32", "--rank", "4", "--threads", "1"]
    argv += ["--population", "4", "--elites", "2", "--iterations", "2"]
    for name, count in (("one", "1"), ("two", "2")):
        assert invoke([*argv, "--out", str(tmp_path / name), "--workers", count]) == 0
    assert journal(tmp_path / "two.search") == journal(tmp_path / "one.search")
    assert len(journal(tmp_path / "one.search")) > 4


@pytest.mark.slow
def test_a_chosen_calibration_set_is_the_same_with_workers(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["select-calibration", str(home / "llama"), "--data", str(home / "text.txt"), "--params", "60%"]
    argv += ["--candidates", "3", "--samples", "4", "--seq-len", "32", "--held-out-samples", "4", "--threads", "1"]
    found = []
    for count in ("1", "2"):
        out = tmp_path / f"{count}.safetensors"
        assert invoke([*argv, "--out", str(out), "--workers", count, "--json"]) == 0
        found.append({**json.loads(capsys.readouterr().out), "path": ""})
    assert found[0] == found[1]
    assert len({candidate["kl"] for candidate in found[0]["candidates"]}) == 3


@pytest.mark.slow
def test_a_set_that_cannot_be_used_is_refused_by_a_worker_in_a_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["select-calibration", str(home / "llama"), "--data", str(home / "text.txt"), "--params", "45%"]
    argv += ["--candidates", "2", "--samples", "4", "--seq-len", "32", "--held-out-samples", "4"]
    assert invoke([*argv, "--out", str(tmp_path / "out.safetensors"), "--workers", "2"]) == 2
    assert "this allocation keeps every block" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_study_is_the_same_with_workers(home: Path, tmp_path: Path) -> None:
    argv = ["study", str(home / "llama"), "--data", str(home / "text.txt"), "--text", str(home / "text.txt")]
    argv += ["--params", "80%", "--samples", "4", "--seq-len", "32", "--proxies", "phi,loss_compensated"]
    argv += ["--rank", "4", "--compensate-samples", "6", "--architectures", "4", "--steps", "2", "--recover-batch", "2"]
    argv += ["--windows", "4", "--resamples", "50", "--threads", "1", "--targets", "recovery,supernet_lora"]
    argv += ["--lora-steps", "2"]
    for name, count in (("one", "1"), ("two", "2")):
        assert invoke([*argv, "--out", str(tmp_path / name), "--workers", count]) == 0
    one, two = (_without_times(journal(tmp_path / name)) for name in ("one", "two"))
    assert one == two and len(one) == 4


def _without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for record in records:
        del record["proxy_seconds"]
        for target in record["targets"].values():
            del target["seconds"]
    return records
