"""`tracenas bench --backend llama.cpp`: directories are exported for it, files run as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_llama import BUFFERS, CALL, PER_BYTE, fake_llama_python
from tiny import save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

SMALL = ["--prompt", "16", "--new-tokens", "5", "--trials", "2", "--warmup", "1"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A base, and one of half the depth."""
    home = tmp_path_factory.mktemp("bench")
    plain = {"attention_bias": False, "mlp_bias": False}
    save_tiny(home / "base", "llama", tokenizer, **plain)
    save_tiny(home / "small", "llama", tokenizer, num_hidden_layers=2, **plain)
    save_tiny(home / "mixtral", "mixtral", tokenizer)
    return home


def argv(home: Path, python: Path, *options: str) -> list[str]:
    return ["bench", str(home / "base"), *SMALL, "--backend", "llama.cpp", "--llama-python", str(python), *options]


def refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    assert invoke(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_figures_are_those_of_the_files(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python, file = fake_llama_python(tmp_path), home / "base.gguf"
    assert invoke(["export", str(home / "base"), "--out", str(file), "--outtype", "f32", "--tokenizer", "none"]) == 0
    capsys.readouterr()
    models = [str(home / "small"), str(file)]
    assert invoke(argv(home, python, *models, "--batch", "1,4", "--threads", "1", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setting"]["backend"] == "llama.cpp" and found["setting"]["llama_cpp"] == "0.0.fake"
    assert found["setting"]["dtype"] == "f32, as stored" and found["setting"]["batch_sizes"] == [1, 4]
    base, small, same, wide = found["models"][:4]
    size = file.stat().st_size
    assert base["ttft_ms"]["median"] == pytest.approx(1000 * (CALL + 16 * PER_BYTE * size), rel=0.01)
    assert base["tpot_ms"]["median"] == pytest.approx(1000 * (CALL + PER_BYTE * size), rel=0.01)
    assert same["tpot_ms"]["median"] == pytest.approx(base["tpot_ms"]["median"], rel=0.01)
    assert small["prefill_speedup"]["median"] > 1.2 and small["params"] < base["params"] == same["params"]
    assert wide["batch"] == 4
    rate = wide["throughput_tokens_per_s"]["median"]
    assert rate == pytest.approx(4 / (CALL + 4 * PER_BYTE * size), rel=0.01)
    expected = size + 2**20 * sum(BUFFERS.values())
    assert same["peak_memory_bytes"] == pytest.approx(expected, abs=2**20 * 0.01)


def test_what_cannot_be_run_is_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    python = fake_llama_python(tmp_path)
    assert "no layout for the family 'mixtral'" in refused(capsys, argv(home, python, str(home / "mixtral")))
    assert "which is run as it is" in refused(capsys, argv(home, python, str(home / "base.gguf"), "--outtype", "q8_0"))
    assert "cache is not used here" in refused(capsys, argv(home, python, "--cache", "static"))
    assert "outtype is not used here" in refused(capsys, ["bench", str(home / "base"), "--outtype", "q8_0"])
    assert "expected a Python interpreter" in refused(capsys, argv(home, tmp_path / "none"))
