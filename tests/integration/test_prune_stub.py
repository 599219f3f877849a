"""`prune --stub-removed-attention`: the same model, said in the card; a directory that is ready for the hub."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tracenas.cli import invoke
from tracenas.commands.prune.result import Pruned
from tracenas.demo import calibration_path, model_path

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model without attention in blocks 0 and 3, without and with stubs."""
    root = tmp_path_factory.mktemp("pruned")
    layers: list[dict[str, Any]] = [{"heads": 5, "channels": 448}, {"heads": 10, "channels": 224}] * 4
    layers[0], layers[3], layers[5] = {"heads": 0, "channels": 448}, {"heads": 0, "channels": 224}, {"skip": True}
    (root / "arch.json").write_text(json.dumps({"layers": layers}))
    given = ["--arch", str(root / "arch.json"), "--data", str(calibration_path()), "--samples", "2", "--seq-len", "32"]
    found = {"plain": root / "plain", "stub": root / "stub"}
    for name, out in found.items():
        extra = ["--stub-removed-attention"] if name == "stub" else []
        assert invoke(["prune", str(model_path()), *given, "--out", str(out), *extra]) == 0
    return found


def numbers(card: Path) -> dict[str, str]:
    lines = [line.strip("| ").split(" | ") for line in card.read_text().splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1] for cells in lines if len(cells) == 2}


def test_the_same_loss_and_the_parameters_are_said(pruned: dict[str, Path]) -> None:
    plain, stub = (numbers(path / "README.md") for path in pruned.values())
    loss = "calibration loss of this checkpoint, reloaded"
    assert stub[loss] == plain[loss]
    zeros = 2 * (4 * 16 * 160 + 160)  # q, k, v, o of one head of 16, and the norm
    assert stub["of these, zeros in place of removed attention"] == f"{zeros:,}"
    count = {name: int(row["parameters"].replace(",", "")) for name, row in (("plain", plain), ("stub", stub))}
    assert count["stub"] == count["plain"] + zeros


def test_the_table_says_what_the_card_says(tmp_path: Path) -> None:
    result = Pruned(tmp_path, params=600, base_params=1000, stock=True, loss=3.25, scored_loss=3.5, stub_params=40)
    (table,) = result.tables()
    assert table.rows == [
        ("checkpoint", str(tmp_path)),
        ("form", "stock configuration"),
        ("parameters", "600 of 1,000 (60.0%)"),
        ("of these, zeros in place of attention", "40"),
        ("calibration loss, reloaded", "3.250000"),
        ("calibration loss, as scored", "3.500000"),
    ]


def test_the_table_says_how_it_was_made(tmp_path: Path) -> None:
    refit = {"method": "ridge", "ridge": 0.1, "tokens": 4096, "separate_text": True, "plain_loss": 4.0}
    result = Pruned(
        tmp_path, params=600, base_params=1000, stock=False, loss=3.25, scored_loss=3.5,
        compensation={**refit, "not_refitted": ["0.mlp"]},
        choice={"written": "ridge", "losses": {"plain": 4.25, "ridge": 3.5, "sequential": None}},
        one_shot={"method": "nirvana", "saliency": "nirvana", "allocation": "adaptive", "gamma": 1.5},
    )  # fmt: skip
    (table,) = result.tables()
    assert table.rows == [
        ("method", "nirvana (saliency nirvana, allocation adaptive)"),
        ("checkpoint", str(tmp_path)),
        ("form", "heterogeneous, with its code"),
        ("parameters", "600 of 1,000 (60.0%)"),
        ("calibration loss, reloaded", "3.250000"),
        ("calibration loss, as scored", "3.500000"),
        ("γ", "1.5"),
        ("compensation", "ridge, ridge 0.1, 4,096 tokens (other text)"),
        ("calibration loss without it", "4.000000"),
        ("not refitted (fused experts)", "0.mlp"),
        ("held-out loss", "plain 4.2500, ridge 3.5000, sequential overflow; written: ridge"),
    ]


def test_the_card_says_how_it_is_served(pruned: dict[str, Path]) -> None:
    plain, stub = ((path / "README.md").read_text() for path in pruned.values())
    assert "blocks 0, 3 have no attention" in plain and "--trust-remote-code" not in plain
    assert "vllm serve stub --trust-remote-code" in stub and "have no attention" not in stub
    assert "| 3 | bypassed (zeros) |" in stub and "| 3 | bypassed |" in plain
    assert "tracenas export stub --format gguf" in stub
    assert "--stub-removed-attention" in stub.split("## How it was made")[1]


def test_the_directory_is_ready_for_the_hub(pruned: dict[str, Path]) -> None:
    for path in pruned.values():
        data = ModelCard.load(path / "README.md").data.to_dict()
        assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
        assert "pruned" in data["tags"]
        names = {p.name for p in path.iterdir()}
        known = {"README.md", "config.json", "modeling_tracenas.py", "model.safetensors", "generation_config.json"}
        assert names - {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"} == known
