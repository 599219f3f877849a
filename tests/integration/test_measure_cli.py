"""`tracenas measure` on tiny models: the table, going on with it, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from interrupted_turns import interrupt_turns
from tiny import save_families

from tracenas.benchmark import torch_turns
from tracenas.benchmark.latency_table import LatencyTable
from tracenas.cli import invoke

pytestmark = pytest.mark.integration

FAMILIES = ("llama", "mixtral", "t5")
SMALL = ["--points", "1:16:16,2:8:24", "--new-tokens", "4", "--turns", "1", "--threads", "1", "--channel-quantum", "8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """Tiny models."""
    return save_families(tmp_path_factory.mktemp("measure"), FAMILIES, tokenizer)


def argv(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    return ["measure", str(home / model), "--out", str(out), *SMALL, *options]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    assert invoke(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


@pytest.mark.parametrize("model", ["llama", "mixtral"])
def test_a_table_is_written_and_checked(
    home: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    assert invoke([*argv(home, out, model=model), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(out) and printed["backend"] == "torch"
    stored = json.loads(out.read_text())
    assert stored["points"] == [
        {"batch": 1, "prompt": 16, "context": 16},
        {"batch": 2, "prompt": 8, "context": 24},
    ]
    assert stored["checked"]["median_error"] >= 0 and len(stored["checked"]["architectures"]) == 12 * 2 * 2
    assert {k["slots"][0][1] for k in stored["kinds"]} == {"attention", "mlp"}
    assert stored["machine"]["threads"] == 1 and stored["machine"]["dtype"] == "fp32"
    assert json.loads(json.dumps(LatencyTable.read(out).to_json())) == stored
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_an_interrupted_table_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "table.json", interrupt_turns(monkeypatch, torch_turns.TorchTurns, 3)
    assert invoke(argv(home, out)) == 130
    journal = tmp_path / "table.json.journal"
    lines = journal.read_text().splitlines()
    assert len(lines) == 3 and not out.exists()
    line = refused(capsys, argv(home, out))
    assert "--resume goes on with it" in line
    line = refused(capsys, argv(home, out, "--resume", "--seed", "1"))
    assert "other settings" in line and journal.read_text().splitlines() == lines
    before = list(asked)
    assert invoke(argv(home, out, "--resume")) == 0
    assert before[2] == asked[3] and not journal.exists()
    base = json.loads(lines[1])["base"][0][0]["prefill_ms"]
    assert base > 0 and LatencyTable.read(out).checked["median_error"] >= 0


def test_bad_input_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    assert "encoder" in refused(capsys, argv(home, out, model="t5"))
    assert "ends in .json" in refused(capsys, argv(home, tmp_path / "table.txt"))
    assert "sequences:prompt:context" in refused(capsys, argv(home, out, "--points", "1x512"))
    assert "positions" in refused(capsys, argv(home, out, "--points", "1:100000:1"))
    assert "torch" in refused(capsys, argv(home, out, "--backend", "tensorrt"))
    out.write_text("mine")
    assert "is there already" in refused(capsys, argv(home, out)) and out.read_text() == "mine"
