"""`tracenas measure --backend vllm`: the table of a vLLM that takes what the widths in config.json say."""

import json
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused, refused_at_last
from fake_vllm import CHANNEL, HEAD, STEP, fake_vllm_python
from interrupted_turns import interrupt_turns
from tiny import SHAPE, save_families

from tracenas.benchmark.latency_table import LatencyTable
from tracenas.benchmark.served_turns import ServedTurns
from tracenas.cli import invoke

pytestmark = pytest.mark.integration

SMALL = ["--points", "1:16:16,2:8:24", "--new-tokens", "4", "--turns", "1", "--threads", "1", "--channel-quantum", "8"]
BLOCKS = SHAPE["num_hidden_layers"]
LOADED = 1 + 4 + 1 + 3 + 6 + 12
"""The base, four more widths of an MLP, one of attention, three bypasses, and whole ones to fit and to check."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    return save_families(tmp_path_factory.mktemp("measure"), ("llama", "mixtral", "gemma"), tokenizer)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_vllm_python(tmp_path_factory.mktemp("vllm") / "environment")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stand-in writes a line for every model that it loads."""
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    return tmp_path / "log"


def loaded(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def argv(home: Path, out: Path, python: Path, *options: str, model: str = "llama") -> list[str]:
    words = ["measure", str(home / model), "--out", str(out), "--backend", "vllm"]
    return [*words, "--vllm-python", str(python), *SMALL, *options]


def test_a_table_adds_up_to_what_whole_architectures_take(
    home: Path, python: Path, tmp_path: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.json"
    stored = printed(capsys, argv(home, out, python, "--enforce-eager"))
    assert stored["backend"] == "vllm" and stored["machine"]["vllm"] == "0.0.fake"
    assert stored["machine"]["dtype"] == "fp32" and stored["machine"]["layers"] == "vllm" and stored["machine"]["eager"]
    assert len(stored["checked"]["architectures"]) == 12 * 2 * 2
    assert stored["checked"]["median_error"] < 1e-6
    table = LatencyTable.read(out)
    spread = {"attention": HEAD * SHAPE["num_attention_heads"], "mlp": CHANNEL * SHAPE["intermediate_size"]}
    for kind in table.kinds:
        narrow = kind.widths[0]
        gone = 1 - narrow / kind.units
        saved = kind.at(kind.units, 0, "prefill_ms") - kind.at(narrow, 0, "prefill_ms")
        assert saved == pytest.approx(1000 * 16 * gone * spread[kind.slots[0][1]], rel=1e-6)
    assert table.outside[0]["decode_ms"] == pytest.approx(1000 * STEP, rel=1e-6)
    assert table.block[0]["decode_ms"] == pytest.approx(1000 * STEP, rel=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "table.json"]
    how = loaded(log)
    assert len(how) == LOADED, "one process for every architecture, all points in it"
    assert all(one["load_format"] == "dummy" and one["dtype"] == "float32" and not one["trusted"] for one in how)


def test_budgets_take_the_table(home: Path, python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "table.json"
    assert invoke(argv(home, out, python, "--dtype", "bf16")) == 0
    words = ["plan", str(home / "llama"), "--no-timing", "--channel-quantum", "8", "--latency", str(out)]
    words += ["--budget", "decode_ms=70%"]
    assert "was measured in bf16, not in fp32" in refused(capsys, words)
    plan = printed(capsys, [*words, "--dtype", "bf16"])
    block = HEAD * SHAPE["num_attention_heads"] + CHANNEL * SHAPE["intermediate_size"]
    base = 1000 * (STEP * (1 + BLOCKS) + BLOCKS * block)
    assert plan["budgets"]["decode_ms"]["limit"] == pytest.approx(0.7 * base, rel=1e-4)


def test_without_the_plugin_transformers_layers_are_measured(
    home: Path,
    python: Path,
    tmp_path: Path,
    log: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "")
    line = refused_at_last(capsys, argv(home, tmp_path / "table.json", python))
    assert "pip install --no-deps" in line and "--trust-remote-code" in line
    stored = printed(capsys, argv(home, tmp_path / "table.json", python, "--trust-remote-code"))
    assert stored["machine"]["layers"] == "transformers"
    assert all(one["trusted"] for one in loaded(log)), "the stand-in sees that no block is without attention"


def test_an_interrupted_table_goes_on_where_it_was(
    home: Path, python: Path, tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out, asked = tmp_path / "table.json", interrupt_turns(monkeypatch, ServedTurns, 4)
    assert invoke(argv(home, out, python)) == 130
    assert "other settings" in refused_at_last(capsys, argv(home, out, python, "--resume", "--enforce-eager"))
    assert invoke(argv(home, out, python, "--resume")) == 0
    assert asked[3] == asked[4] and LatencyTable.read(out).checked["median_error"] < 1e-6
    assert len(loaded(log)) == LOADED + 1, "no architecture twice, but for the base"


def test_what_vllm_cannot_serve_is_one_line(
    home: Path,
    python: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "table.json"
    line = refused_at_last(capsys, argv(home, out, python, model="mixtral"))
    assert "the family 'mixtral'" in line and "--backend torch" in line
    line = refused_at_last(capsys, argv(home, out, python, model="gemma"))
    assert "--trust-remote-code" in line and "pip install" not in line
    monkeypatch.setenv("FAKE_VLLM_REFUSES", "bfloat16")
    line = refused_at_last(capsys, argv(home, out, python, "--dtype", "bf16"))
    assert "vLLM ended (exit status 1): ValueError: bfloat16 is not served" in line
    assert "expected a Python interpreter" in refused_at_last(capsys, argv(home, out, tmp_path / "none"))
    assert not out.exists()
