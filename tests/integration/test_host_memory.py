"""Weights and factors in mapped files: the same checkpoints, journals and losses as in memory."""

import re
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused
from run_journals import journal
from tiny import save_families

from tracenas import paging
from tracenas.cli import invoke
from tracenas.pipeline import host_memory, workers

pytestmark = pytest.mark.integration

SMALL = ["--samples", "4", "--seq-len", "32", "--channel-quantum", "8", "--threads", "1", "--batch", "4"]
BUDGET = ["--params", "60%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models and a text."""
    return save_families(tmp_path_factory.mktemp("memory"), ("llama", "gemma2", "mixtral"), tokenizer)


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A machine on which nothing fits; sizes of what was put into files."""
    sizes: list[int] = []

    def counting(tensor: Any, dtype: Any = None) -> Any:
        sizes.append(tensor.numel())
        return paging.paged(tensor, dtype)

    monkeypatch.setattr(paging, "_file_system", lambda path: "ext4")
    monkeypatch.setattr(paging, "LEAST", 1 << 12)
    monkeypatch.setattr(host_memory, "paged", counting)
    monkeypatch.setattr(host_memory, "host_memory", lambda: 1)
    return sizes


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("llama", "bf16"),
        pytest.param("llama", "fp32", marks=pytest.mark.slow),
        pytest.param("gemma2", "fp32", marks=pytest.mark.slow),
        pytest.param("mixtral", "bf16", marks=pytest.mark.slow),
    ],
)
def test_prune_writes_the_same_checkpoint(
    home: Path, tmp_path: Path, model: str, dtype: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    command = ["prune", str(home / model), "--data", str(home / "text.txt"), "--method", "fisher", *BUDGET, *SMALL]
    command += ["--dtype", dtype]
    assert invoke([*command, "--out", str(tmp_path / "memory")]) == 0
    sizes = request.getfixturevalue("short_of_memory")
    assert invoke([*command, "--out", str(tmp_path / "files")]) == 0
    assert sizes
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "files")]
    assert weights[0] == weights[1]


def test_a_search_writes_the_same_journal(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    sizes = ["--population", "6", "--elites", "2", "--iterations", "3"]
    command = ["search", str(home / "llama"), "--data", str(home / "text.txt"), *BUDGET, *SMALL, *sizes]
    assert invoke([*command, "--out", str(tmp_path / "memory")]) == 0
    kept = request.getfixturevalue("short_of_memory")
    assert invoke([*command, "--out", str(tmp_path / "files"), "-v"]) == 0
    assert kept
    assert capsys.readouterr().err.count("candidates block by block: ") >= 3  # generations, and who is compared at last
    assert journal(tmp_path / "files") == journal(tmp_path / "memory")


@pytest.mark.parametrize("options", [("--metric", "sparsegpt"), ("--metric", "wanda", "--ratios", "owl")])
def test_sparsify_writes_the_same_checkpoint(
    home: Path, tmp_path: Path, options: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    command = ["sparsify", str(home / "llama"), "--data", str(home / "text.txt"), "--sparsity", "0.5", *options]
    command += ["--samples", "8", "--seq-len", "32", "--threads", "1"]
    assert invoke([*command, "--out", str(tmp_path / "memory")]) == 0
    assert request.getfixturevalue("short_of_memory") == []
    assert invoke([*command, "--out", str(tmp_path / "files")]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "files")]
    assert weights[0] == weights[1]


def test_eval_measures_the_same_loss(
    home: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    command = ["eval", str(home / "llama"), "--text", str(home / "text.txt"), "--seq-len", "32", "--windows", "4"]
    in_memory = printed(capsys, command)
    request.getfixturevalue("short_of_memory")
    assert printed(capsys, command)["nll"] == in_memory["nll"]


@pytest.mark.parametrize(
    ("limit", "said"),
    [("1MB", "too little for .*; accepted: .* MiB or more"), ("lots", "an amount of memory such as 3.5GB")],
)
def test_limits_that_cannot_be_kept_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: str, said: str
) -> None:
    command = ["prune", str(home / "llama"), "--data", str(home / "text.txt"), "--method", "fisher", *BUDGET, *SMALL]
    line = refused(capsys, [*command, "--host-memory", limit, "--out", str(tmp_path / "out")])
    assert re.search(said, line)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_workers_are_refused_where_weights_wait_in_files(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    short_of_memory: Any,
) -> None:
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    sizes = ["--population", "4", "--elites", "2", "--iterations", "2", "--workers", "2"]
    command = ["search", str(home / "llama"), "--data", str(home / "text.txt"), *BUDGET, *SMALL, *sizes, "-q"]
    line = refused(capsys, [*command, "--out", str(tmp_path / "run")])
    assert line.endswith("these wait in files (host-memory): --workers 1")
