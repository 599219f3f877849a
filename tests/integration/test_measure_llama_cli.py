"""`tracenas measure --backend llama.cpp`: the table of a llama.cpp that takes what its file's size says."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_llama import PER_BYTE, fake_llama_python
from interrupted_turns import interrupt_turns
from tiny import save_families, save_tiny

from tracenas.benchmark.latency_table import LatencyTable
from tracenas.cli import invoke

pytestmark = pytest.mark.integration

FAMILIES = ("llama", "mixtral")
SMALL = ["--points", "1:16:16,2:8:24", "--new-tokens", "4", "--turns", "1", "--threads", "1", "--channel-quantum", "8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    home = save_families(tmp_path_factory.mktemp("measure"), FAMILIES, tokenizer)
    save_tiny(home / "gemma", "gemma", tokenizer, attention_bias=False)
    return home


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_llama_python(tmp_path_factory.mktemp("llama"))


def argv(home: Path, out: Path, python: Path, *options: str, model: str = "llama") -> list[str]:
    words = ["measure", str(home / model), "--out", str(out), "--backend", "llama.cpp"]
    return [*words, "--llama-python", str(python), *SMALL, *options]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    assert invoke(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_a_table_adds_up_to_what_whole_architectures_take(home: Path, python: Path, tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    assert invoke(argv(home, out, python, "--outtype", "f32")) == 0
    stored = json.loads(out.read_text())
    assert stored["backend"] == "llama.cpp" and stored["machine"]["dtype"] == "f32"
    assert stored["machine"]["llama_cpp"] == "0.0.fake" and stored["machine"]["threads"] == 1
    assert len(stored["checked"]["architectures"]) == 12 * 2 * 2
    assert stored["checked"]["median_error"] < 0.005
    table = LatencyTable.read(out)
    mlp = next(kind for kind in table.kinds if kind.slots[0][1] == "mlp")
    wide, narrow = (mlp.at(width, 0, "prefill_ms") for width in (mlp.widths[-1], mlp.widths[1]))
    channels = 3 * 32 * 4 * (mlp.widths[-1] - mlp.widths[1])  # bytes of gate, up and down, of 32 hidden
    assert wide - narrow == pytest.approx(
        1000 * PER_BYTE * 16 * channels, rel=0.1
    )  # zeros stand for an MLP that is gone alone
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_an_interrupted_table_goes_on(
    home: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tracenas.benchmark.served_turns import ServedTurns

    out, asked = tmp_path / "table.json", interrupt_turns(monkeypatch, ServedTurns, 3)
    assert invoke(argv(home, out, python)) == 130
    assert "other settings" in refused(capsys, argv(home, out, python, "--resume", "--outtype", "q8_0"))
    assert invoke(argv(home, out, python, "--resume")) == 0
    assert asked[2] == asked[3] and LatencyTable.read(out).checked["median_error"] < 0.05


def test_what_llama_cpp_cannot_serve_is_one_line(
    home: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    padded = refused(capsys, argv(home, out, python, model="gemma"))
    assert "no layout of blocks that differ" in padded and "--backend torch" in padded
    assert "no GGUF layout for the family 'mixtral'" in refused(capsys, argv(home, out, python, model="mixtral"))
    assert "built without a GPU" in refused(capsys, argv(home, out, python, "--device", "cuda"))
    assert "dtype is not used here" in refused(capsys, argv(home, out, python, "--dtype", "bf16"))
    torch = ["measure", str(home / "llama"), "--out", str(out), "--outtype", "f16"]
    assert "outtype is not used here" in refused(capsys, torch)
    assert not out.exists()


def test_a_backend_that_is_not_there_is_one_line(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "table.json"
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('libllama.so is not there')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    line = refused(capsys, argv(home, out, Path(sys.executable)))
    assert "pip install llama-cpp-python" in line and "libllama.so" in line
    assert "expected a Python interpreter" in refused(capsys, argv(home, out, tmp_path / "none"))


def test_a_program_that_ends_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = fake_llama_python(tmp_path)
    module = tmp_path / "llama_cpp.py"
    module.write_text(module.read_text().replace("    return 0\n", "    return -3\n"))
    line = refused(capsys, argv(home, tmp_path / "table.json", python))
    assert "llama.cpp ended (exit status 1): llama_decode failed with status -3" in line
