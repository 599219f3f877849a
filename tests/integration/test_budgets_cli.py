"""Budgets by the command line: plan, search and one-shot pruning meet several at once, on a tiny model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_lines import printed, refused
from tiny import save_tiny, save_words
from transformers import AutoModelForCausalLM

from tracenas.cli import invoke
from tracenas.demo import model_path
from tracenas.journal import Journal
from tracenas.settings import read_settings

pytestmark = pytest.mark.integration

SETTINGS = ["--samples", "4", "--seq-len", "32", "--threads", "1", "--channel-quantum", "8"]
SMALL = ["--population", "6", "--elites", "2", "--iterations", "2"]
PAIR = ["--budget", "params=80%", "--budget", "kv_cache=75%"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A tiny model of grouped queries, and a text."""
    home = tmp_path_factory.mktemp("budgets")
    save_tiny(home / "model", "llama", tokenizer)
    save_tiny(home / "gemma", "gemma2", tokenizer, attention_bias=False)
    save_words(home / "text.txt", 1500)
    return home


@pytest.fixture(scope="module")
def searched(home: Path) -> Path:
    """The run directory of a search under two budgets."""
    data = ["--data", str(home / "text.txt"), "--out", str(home / "run")]
    assert invoke(["search", str(home / "model"), *data, *SETTINGS, *SMALL, *PAIR]) == 0
    return home / "run"


def planned(home: Path, *budgets: str, model: str = "model") -> list[str]:
    return ["plan", str(home / model), "--no-timing", *(word for b in budgets for word in ("--budget", b))]


def cached_bytes(directory: Path) -> int:
    """Of one token, as a checkpoint's cache holds it."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    with torch.no_grad():
        layers = model(torch.tensor([[1]]), use_cache=True).past_key_values.layers
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_plan_says_every_budget_in_numbers(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("params", "active_params", "flops", "kv_cache", "memory", "file")
    plan = printed(capsys, ["plan", str(model_path()), "--no-timing", *(f"--budget={name}=80%" for name in names)])
    assert list(plan["budgets"]) == list(names)
    for budget in plan["budgets"].values():
        low, high = budget["feasible"]
        assert all(isinstance(number, int) for number in (low, high, budget["limit"], budget["uniform"]))
        assert low < budget["uniform"] <= budget["limit"] < high
        assert budget["limit"] == int(0.8 * high + 1e-6)
    assert plan["budgets"]["params"]["limit"] == plan["budget"]["limit"]
    assert plan["budgets"]["params"]["uniform"] == plan["uniform"]["params"]
    alone = printed(capsys, ["plan", str(home / "model"), "--no-timing", "--params", "80%"])
    assert alone["budgets"] == {
        "params": {
            "limit": alone["budget"]["limit"],
            "feasible": [alone["feasible"]["smallest"], alone["feasible"]["base"]],
            "uniform": alone["uniform"]["params"],
        }
    }


def test_absolute_values_have_units_and_settings_that_they_depend_on(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = printed(capsys, planned(home, "memory=100%"))["budgets"]["memory"]["feasible"][1]
    half = printed(capsys, [*planned(home, "memory=100%"), "--outtype", "bf16"])["budgets"]["memory"]["feasible"][1]
    many = [*planned(home, "memory=100%"), "--serve-batch", "3", "--context", "8"]
    assert half < base
    assert printed(capsys, many)["budgets"]["memory"]["feasible"][1] != base
    limit = printed(capsys, planned(home, f"memory={0.9 * base / 1024:.3f}KiB"))["budgets"]["memory"]["limit"]
    assert limit == int(round(0.9 * base / 1024, 3) * 1024 + 1e-6)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        (["parms=60%"], "unknown budget 'parms': did you mean 'params'?"),
        (["params"], "expected NAME=VALUE"),
        (["params=60%", "params=70%"], "budget params is given twice, as 60% and as 70%"),
        (["memory=6QB"], "budget memory '6QB': expected a share such as 60%, or a size such as 400MB or 6GiB"),
        (["memory=0.6"], "did you mean 60%?"),
        (["flops=100G"], "is more than the base model's"),
        (["params=90%", "kv_cache=1%"], "of KV cache per token is below the smallest architecture of this space"),
    ],
)
def test_what_is_no_budget_is_refused_in_a_line(
    home: Path, capsys: pytest.CaptureFixture[str], budgets: list[str], message: str
) -> None:
    assert message in refused(capsys, planned(home, *budgets))


def test_settings_that_no_budget_reads_and_files_that_do_not_add_up_are_refused(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = planned(home, "params=80%")
    assert "serve-batch needs a budget of decode_ms, memory, prefill_ms" in refused(
        capsys, [*argv, "--serve-batch", "4"]
    )
    assert "context needs a budget of decode_ms, flops, memory" in refused(capsys, [*argv, "--context", "4"])
    assert "no layout of blocks that differ for gemma2" in refused(capsys, planned(home, "file=80%", model="gemma"))
    message = refused(capsys, planned(home, "file=80%"))  # a byte-level tokenizer that llama.cpp does not know by name
    assert "budget file: as of `tracenas export`: " in message and "accepted here: memory, params" in message
    sublayer = [*planned(home, "file=80%"), "--depth-granularity", "sublayer"]
    assert "budget file goes with --depth-granularity block" in refused(capsys, sublayer)
    search = ["search", str(home / "model"), "--data", "x", "--out", "y"]
    assert "'params' is required, or budget" in refused(capsys, search)


def test_a_search_keeps_all_budgets_and_goes_on_with_them(
    home: Path, searched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = printed(capsys, [*planned(home, "params=80%", "kv_cache=75%"), "--channel-quantum", "8"])["budgets"]
    summary = json.loads((searched / "summary.json").read_text())
    assert {name: one["limit"] for name, one in summary["budgets"].items()} == {n: b["limit"] for n, b in plan.items()}
    assert read_settings(searched / "config.yaml")["kv_groups"] is True  # the cache counts
    records = Journal(searched / "journal.jsonl").read()
    cached = 2 * 8 * 4  # K and V of a group, 8 wide, in fp32
    for record in records:
        groups = sum(layer.get("kv_heads", 0) for layer in record["arch"]["layers"])
        assert record["params"] <= plan["params"]["limit"] and cached * groups <= plan["kv_cache"]["limit"]
    data = ["--data", str(home / "text.txt"), "--out", str(searched), "--resume"]
    argv = ["search", str(home / "model"), *data, *SETTINGS, *SMALL]
    assert printed(capsys, [*argv, *PAIR])["params"] == summary["params"]
    assert "--resume with another budget" in refused(capsys, [*argv, *PAIR[:3], "kv_cache=50%"])


@pytest.mark.parametrize("method", ["fisher", "uniform", "flap"])
def test_one_shot_methods_meet_all_budgets(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    data = ["--data", str(home / "text.txt"), "--out", str(tmp_path / "out"), "--compensate", "none"]
    made = printed(capsys, ["prune", str(home / "model"), *data, *SETTINGS, *PAIR, "--method", method])
    plan = printed(capsys, [*planned(home, "params=80%", "kv_cache=75%"), "--channel-quantum", "8"])["budgets"]
    assert made["params"] <= plan["params"]["limit"]
    assert cached_bytes(tmp_path / "out") <= plan["kv_cache"]["limit"] < cached_bytes(home / "model")
    assert "--budget params=80% --budget kv_cache=75%" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_fits_its_budget_to_the_byte(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file's name is part of it: the directory has the model's."""
    model, out, data = str(model_path()), tmp_path / model_path().name, ["--data", str(home / "text.txt")]
    budget = printed(capsys, ["plan", model, "--no-timing", "--budget", "file=80%"])["budgets"]["file"]
    argv = ["prune", model, "--out", str(out), *data, "--compensate", "none", "--method", "uniform"]
    printed(capsys, [*argv, *SETTINGS[:6], "--budget", "file=80%"])
    written = printed(capsys, ["export", str(out), "--format", "gguf", "--out", str(tmp_path / "model.gguf")])
    assert written["bytes"] == (tmp_path / "model.gguf").stat().st_size == budget["uniform"] <= budget["limit"]


def test_a_plan_without_timing_needs_no_torch() -> None:
    code = (
        "import sys; from tracenas.commands import call;"
        f"call('plan', {{'model': {str(model_path())!r}, 'no_timing': True, 'budget': {{'file': '80%'}}}});"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
