"""The end of a search: held-out text decides between its best candidates, stock shapes before others if asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_families
from transformers import AutoModelForCausalLM

from tracenas.cli import invoke

pytestmark = pytest.mark.integration

SETTINGS = ["--seq-len", "32", "--threads", "1", "--channel-quantum", "8", "--params", "60%"]
SMALL = ["--population", "6", "--elites", "4", "--iterations", "2", "--samples", "2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model and a text."""
    return save_families(tmp_path_factory.mktemp("prefer"), ("llama",), tokenizer)


def search(home: Path, out: Path, *options: str) -> list[str]:
    return ["search", str(home / "llama"), "--data", str(home / "text.txt"), "--out", str(out), *SETTINGS, *options]


def found(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """best.json, and the trials."""
    best = json.loads((run / "best.json").read_text())
    return best, json.loads((run / "selection.json").read_text())["trials"]


def refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert invoke(argv) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def loss(checkpoint: Path, windows: torch.Tensor) -> float:
    """Mean loss by transformers' own forward pass, nats per token."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, dtype=torch.float32)
    with torch.no_grad():
        logits = model(windows).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()))


def test_what_is_taken_is_the_best_on_held_out_text(home: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert invoke(search(home, run, *SMALL)) == 0
    best, trials = found(run)
    means = {t["id"]: sum(t["terms"]) / len(t["terms"]) for t in trials}
    assert len(means) > 1 and best["id"] == best["selection"]["chosen"] == min(means, key=lambda name: means[name])
    journal = {r["id"]: r for r in map(json.loads, (run / "journal.jsonl").read_text().splitlines())}
    assert (best["score"], best["loss"]) == (journal[best["id"]]["score"], journal[best["id"]]["loss"])
    argv = ["prune", str(home / "llama"), "--arch", str(run / "best.json"), "--out", str(out), "--compensate", "auto"]
    assert invoke([*argv, "--threads", "1", "--channel-quantum", "8"]) == 0
    windows = load_file(run / "held_out.safetensors")["input_ids"].long()[: len(trials[0]["terms"])]
    assert loss(out, windows) == pytest.approx(means[best["id"]], abs=2e-4)


def test_a_search_that_was_killed_before_it_decided_decides_the_same(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert invoke(search(home, run, *SMALL)) == 0
    kept = {name: (run / name).read_text() for name in ("best.json", "selection.json", "journal.jsonl")}
    for name in ("best.json", "selection.json", "summary.json"):
        (run / name).unlink()
    assert invoke(["resume", str(run)]) == 0
    assert {name: (run / name).read_text() for name in kept} == kept
    (run / "best.json").unlink()
    assert invoke(["resume", str(run)]) == 0  # without the model
    assert (run / "best.json").read_text() == kept["best.json"]


def test_a_stock_shape_is_compared_and_said(home: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    assert invoke(search(home, run, *SMALL, "--prefer", "stock")) == 0
    best, trials = found(run)
    assert any(t["stock"] for t in trials)
    (taken,) = (t for t in trials if t["id"] == best["id"])
    assert taken["stock"] or "more than the noise" in best["selection"]["said"]
    argv = ["prune", str(home / "llama"), "--arch", str(run / "best.json"), "--out", str(out), "--compensate", "auto"]
    assert invoke([*argv, "--threads", "1", "--channel-quantum", "8"]) == 0
    assert ("auto_map" not in json.loads((out / "config.json").read_text())) is taken["stock"]


def test_bad_preferences_are_one_line(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    line = refused(capsys, search(home, run, *SMALL, "--prefer", "stock", "--proxy", "phi"))
    assert "prefer is not used here" in line and not run.exists()
    short = tmp_path / "short.txt"
    short.write_text((home / "text.txt").read_text()[:90])
    argv = search(home, run, *SMALL, "--prefer", "stock", "--proxy", "loss", "--start", "none")
    line = refused(capsys, [str(short) if a == str(home / "text.txt") else a for a in argv])
    assert line.startswith("tracenas: prefer stock: candidates are compared on held-out text") and not run.exists()
