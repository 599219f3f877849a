"""Trials in llama.cpp itself, and the memory that its log tells beside what the budget `memory` counts.

Skipped without llama.cpp; how to build it is in test_gguf_llama_cpp.py:

    TRACENAS_LLAMA_PYTHON=llama/bin/python pytest -m parity tests/parity/test_llama_trials.py
"""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tracenas.benchmark.served_model import Run
from tracenas.budgets import Counted, Serving
from tracenas.demo import model_path
from tracenas.models.checkpoints.source import open_source
from tracenas.pipeline.budgets import Costs
from tracenas.pipeline.gguf_files import DrawnFiles
from tracenas.pipeline.llama import llama_cpp
from tracenas.space.architecture import Architecture

PYTHON = os.environ.get("TRACENAS_LLAMA_PYTHON")
HOW = "set TRACENAS_LLAMA_PYTHON to a Python with llama-cpp-python (how to build it: test_gguf_llama_cpp.py)"
pytestmark = [pytest.mark.parity, pytest.mark.skipif(not PYTHON, reason=HOW)]

LENGTH, BATCH, NEW = 256, 2, 4


def answers(archs: list[Architecture], stored: str, directory: Path) -> list[dict[str, Any]]:
    source = open_source(str(model_path()))
    space = source.space()
    files = DrawnFiles(Counted(source, source.blocks(), Serving(LENGTH, BATCH, stored)), space.base)
    found = []
    run: Run = {"batch": BATCH, "prompt": LENGTH - NEW, "before": 200, "new_tokens": NEW}
    with llama_cpp(SimpleNamespace(llama_python=Path(str(PYTHON)), device="cpu", threads=1, seed=0)) as program:
        for number, arch in enumerate(archs):
            path = directory / f"{number}.gguf"
            files.write(arch, path)
            with program.model(path) as model:
                found.append(model.ask([run]))
    return found


def test_memory_is_what_llama_cpp_says(tmp_path: Path) -> None:
    source = open_source(str(model_path()))
    space = source.space()
    narrow = space.build([[5, 224], [10, 448]] * (len(space.layers) // 2))
    costs = Costs(space, Counted(source, source.blocks(), Serving(LENGTH, BATCH, "q8_0")))
    for arch, answer in zip((space.base, narrow), answers([space.base, narrow], "q8_0", tmp_path), strict=True):
        assert set(answer["bytes"]) == {"model", "KV", "compute", "output"}
        told = answer["bytes"]
        left = costs.exactly("memory", arch) - told["model"] - told["KV"] - told["output"]
        assert left == pytest.approx(
            told["compute"], rel=0.01 if arch == space.base else 0.15
        )  # pieces between buffers


@pytest.mark.parametrize("stored", ["f32", "bf16", "q8_0"])
def test_architectures_without_a_checkpoint_run(stored: str, tmp_path: Path) -> None:
    space = open_source(str(model_path())).space()
    blocks = len(space.layers)
    gone = space.build([[10, 448], [0, 0]] * (blocks // 2))
    without_mlp = space.build([[10, 0], [10, 448]] * (blocks // 2))
    without_attention = space.build([[10, 448], [0, 448]] * (blocks // 2))
    base, half, *stubbed = answers([space.base, gone, without_mlp, without_attention], stored, tmp_path)
    for answer in (base, half, *stubbed):
        (run,) = answer["runs"]
        assert run["prefill"] > 0 and run["decode"] > 0
        assert answer["bytes"]["model"] <= base["bytes"]["model"]
    assert 2 * half["bytes"]["KV"] == base["bytes"]["KV"]
