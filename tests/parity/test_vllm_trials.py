"""Trials in vLLM itself, of architectures without weights: an optional tier, as in test_vllm.py.

    TRACENAS_VLLM_PYTHON=/path/to/vllm-environment/bin/python pytest -m slow tests/parity/test_vllm_trials.py

With tracenas in that environment vLLM's own layers are tried, without it transformers'.
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny import save_tiny

from tracenas.benchmark.served_model import Run
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.drawn_checkpoints import DrawnCheckpoints
from tracenas.pipeline.vllm import open_vllm, room

PYTHON = os.environ.get("TRACENAS_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TRACENAS_VLLM_PYTHON names no Python with vLLM"),
]

RUNS: list[Run] = [
    {"batch": 1, "prompt": 32, "before": 24, "new_tokens": 4},
    {"batch": 2, "prompt": 16, "before": 16, "new_tokens": 4},
]


def test_an_architecture_without_weights_runs(tmp_path: Path, tokenizer: Any) -> None:
    shape = {"hidden_size": 64, "head_dim": 32, "max_position_embeddings": 128}  # vLLM takes no smaller head on a CPU
    source = open_source(str(save_tiny(tmp_path / "base", "llama", tokenizer, **shape)))
    settings = {"enforce_eager": True, "device": "cpu", "threads": 1, "seed": 0, "vllm_python": Path(PYTHON)}
    plugin = open_vllm(SimpleNamespace(**settings, trust_remote_code=False)).plugin
    program = open_vllm(SimpleNamespace(**settings, trust_remote_code=not plugin))
    files = DrawnCheckpoints(source, source.blocks(), "float32", stub_attention=not plugin)
    files.write(source.space().build([[4, 64], [0, 96], [0, 0], [2, 0]]), tmp_path / "drawn")
    load = {**room([source], dtype="float32", sequences=2, length=36), "load_format": "dummy"}
    with program.model(tmp_path / "drawn", at_once=2, load=load) as model:
        answers = [model.ask(RUNS), model.ask(RUNS)]
    for answer in answers:
        assert len(answer["runs"]) == len(RUNS)
        assert all(run["prefill"] > 0 and run["decode"] > 0 for run in answer["runs"])
