"""`tracenas bench --backend vllm`: what is asked of vLLM, by a stand-in with a clock of its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

_MODULE = """
import json, os, time
from types import SimpleNamespace as Of

__version__ = "0.0.fake"
clock = [0.0]
time.perf_counter = lambda: clock[0]


class SamplingParams:
    def __init__(self, *, temperature, max_tokens, ignore_eos, detokenize):
        self.tokens = max_tokens


class LLM:
    def __init__(self, model, *, max_model_len, max_num_seqs, gpu_memory_utilization, enable_prefix_caching, **how):
        assert how["skip_tokenizer_init"] and not enable_prefix_caching
        config = json.load(open(os.path.join(model, "config.json")))
        self.blocks, self.length, self.sequences = config["num_hidden_layers"], max_model_len, max_num_seqs
        self.share = gpu_memory_utilization
        self.model_config = Of(get_vocab_size=lambda: config["vocab_size"])
        print("noise on standard output")

    def generate(self, prompts, how, use_tqdm):
        assert self.share == 0.45 and len(prompts) <= self.sequences
        assert all(len(p["prompt_token_ids"]) + how.tokens <= self.length for p in prompts)
        clock[0] += self.blocks * (0.5 * len(prompts) + 0.25 * (how.tokens - 1))
"""
_TORCH = "cuda = type('cuda', (), {'is_available': staticmethod(lambda: False)})\nget_num_threads = lambda: 3\n"


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """An interpreter that finds the stand-ins."""
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "vllm.py").write_text(_MODULE)
    (folder / "torch.py").write_text(_TORCH)
    (folder / "python").write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    (folder / "python").chmod(0o755)
    return folder / "python"


def test_models_take_turns_each_in_its_process(
    python: Path, tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny(tmp_path / "base", "llama", tokenizer)
    small = save_tiny(tmp_path / "small", "llama", tokenizer, num_hidden_layers=2)
    words = ["bench", str(base), str(small), "--backend", "vllm", "--vllm-python", str(python), "--batch", "1,4"]
    capsys.readouterr()
    assert invoke([*words, "--prompt", "16", "--new-tokens", "5", "--trials", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["setting"]["vllm"] == "0.0.fake" and found["setting"]["threads"] == 3
    first, second, *wide = found["models"]
    assert first["ttft_ms"]["median"] == pytest.approx(1000 * 4 * 0.5)
    assert first["tpot_ms"]["median"] == pytest.approx(1000 * 4 * 0.25)
    assert second["decode_speedup"]["median"] == pytest.approx(2)
    assert [m["batch"] for m in wide] == [4, 4] and wide[0]["ttft_ms"]["median"] == pytest.approx(1000 * 4 * 2)
    assert first["peak_memory_bytes"] is None


def test_without_vllm_it_is_one_line(
    tmp_path: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(save_tiny(tmp_path / "base", "llama", tokenizer))
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    capsys.readouterr()
    assert (
        invoke(["bench", base, "--backend", "vllm", "--prompt", "8", "--new-tokens", "4", "--vllm-python", str(python)])
        == 2
    )
    assert "needs vLLM" in (line := capsys.readouterr().err.strip().splitlines()[-1]) and "the package vllm" in line
    assert invoke(["bench", base, "--vllm-python", sys.executable]) == 2
    assert "vllm-python is not used here" in capsys.readouterr().err
