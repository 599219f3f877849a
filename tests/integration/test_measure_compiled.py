"""`measure --backend torch-compile`: a block is compiled once for all widths; without a compiler it says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_tiny, tiny_model

from tracenas.benchmark.latency_table import Point
from tracenas.benchmark.torch_turns import TorchTurns
from tracenas.cli import invoke
from tracenas.models.checkpoints.source import open_source

pytestmark = pytest.mark.integration


def test_without_a_compiler_it_is_one_line(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def missing() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    model = save_tiny(tmp_path / "llama", "llama", tokenizer)
    words = ["measure", str(model), "--out", str(tmp_path / "t.json"), "--backend", "torch-compile"]
    assert invoke([*words, "--points", "1:8:8", "--device", "cpu"]) == 2
    assert "needs a C++ compiler" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what torch.compile imports warns
def test_widths_share_what_was_compiled(tmp_path: Path, tokenizer: Any) -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    source = open_source(str(save_tiny(tmp_path / "llama", "llama", tokenizer, num_hidden_layers=2)))
    space, blocks = source.space(), source.blocks()
    turns = TorchTurns(
        tiny_model("llama", num_hidden_layers=2),
        blocks,
        space,
        [Point(1, 16, 16)],
        turns=1,
        new_tokens=4,
        seed=0,
        compiled=True,
    )

    def at(heads: int, channels: int) -> Any:
        return space.build([[heads, channels]] * 2)

    turns([at(2, 96)], lambda _: None)
    turns([at(4, 64)], lambda _: None)
    before = counters["stats"]["unique_graphs"]
    times = turns([at(2, 64), at(2, 32), at(4, 32)], lambda _: None)
    assert before > 0 and counters["stats"]["unique_graphs"] == before
    assert all(latency[0]["prefill_ms"] > 0 for latency in times.base)
    torch.compiler.reset()
