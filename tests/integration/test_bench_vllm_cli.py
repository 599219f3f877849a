"""`tracenas bench --backend vllm`: what is asked of vLLM, by a stand-in with a clock of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from command_lines import printed, refused, refused_at_last
from fake_vllm import CHANNEL, HEAD, STEP, fake_vllm_python
from tiny import SHAPE, save_tiny

pytestmark = pytest.mark.integration

BLOCK = HEAD * SHAPE["num_attention_heads"] + CHANNEL * SHAPE["intermediate_size"]
"""Seconds of a block per token, beside its part of a step."""
SMALL = ["--prompt", "16", "--new-tokens", "5", "--trials", "2"]


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return fake_vllm_python(tmp_path / "environment")


def step(blocks: int, tokens: int) -> float:
    """Milliseconds that the stand-in takes for a step."""
    return 1000 * (STEP * (1 + blocks) + BLOCK * blocks * tokens)


def test_models_take_turns_each_in_its_process(
    python: Path,
    tmp_path: Path,
    tokenizer: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_VLLM_LOG", str(tmp_path / "log"))
    base = save_tiny(tmp_path / "base", "llama", tokenizer)
    small = save_tiny(tmp_path / "small", "llama", tokenizer, num_hidden_layers=2)
    words = ["bench", str(base), str(small), "--backend", "vllm", "--vllm-python", str(python), "--batch", "1,4"]
    found = printed(capsys, [*words, *SMALL, "--enforce-eager"])
    assert found["setting"]["vllm"] == "0.0.fake" and found["setting"]["threads"] == 3
    first, second, *wide = found["models"]
    assert first["ttft_ms"]["median"] == pytest.approx(step(4, 16))
    assert first["tpot_ms"]["median"] == pytest.approx(step(4, 1))
    assert second["decode_speedup"]["median"] == pytest.approx(step(4, 1) / step(2, 1))
    assert [m["batch"] for m in wide] == [4, 4] and wide[0]["ttft_ms"]["median"] == pytest.approx(step(4, 64))
    assert first["peak_memory_bytes"] is None
    loaded = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [one["gpu_memory_utilization"] for one in loaded] == [0.45, 0.45]
    assert all(one["enforce_eager"] and not one["trusted"] and "load_format" not in one for one in loaded)
    bytes_per_token = 4 * 2 * 2 * 8 * 4  # float32, K and V, two heads of 8, four blocks
    assert all(one["kv_cache_memory_bytes"] >= 4 * (16 + 5) * bytes_per_token for one in loaded)


def test_without_vllm_it_is_one_line(tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(save_tiny(tmp_path / "base", "llama", tokenizer))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    line = refused(capsys, ["bench", base, "--backend", "vllm", *SMALL, "--vllm-python", str(python)])
    assert "needs vLLM" in line and "the package vllm" in line
    assert "vllm-python is not used here" in refused(capsys, ["bench", base, "--vllm-python", sys.executable])
    assert "enforce-eager is not used here" in refused(capsys, ["bench", base, "--enforce-eager"])


def test_a_gpu_that_is_not_there_is_one_line(
    python: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = str(save_tiny(tmp_path / "base", "llama", tokenizer))
    words = ["bench", base, "--backend", "vllm", *SMALL, "--vllm-python", str(python), "--device", "cuda"]
    assert "finds no GPU; accepted: auto, cpu" in refused_at_last(capsys, words)
