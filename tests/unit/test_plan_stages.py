"""What plan says of the stages behind the search, of what fits, and of the settings files of others."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tracenas import resident
from tracenas.cli import _yaml, invoke
from tracenas.commands.plan.needs import Need, needs
from tracenas.commands.plan.training import training
from tracenas.commands.recover.checks import parse_tokens
from tracenas.config import PlanConfig, build
from tracenas.demo import model_path
from tracenas.recovery.settings import SUSTAINED
from tracenas.scoring.workload import Memory

RECIPES = sorted((Path(__file__).parents[2] / "src/tracenas/recipes").glob("*.yaml"))
MEMORY = Memory(weights=100, traces=10, activations=20, head=30, libraries=0, compensation=40)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(path: Path) -> None:
    settings = build(PlanConfig, _yaml(path, "plan"))
    assert settings.recover is not None
    found = training(settings.recover, 4096)
    recipe = yaml.safe_load(path.read_text())
    recovery = recipe.get("recover", recipe)
    if "tokens" in recovery:
        assert parse_tokens(recovery["tokens"]) <= found.tokens < 1.1 * parse_tokens(recovery["tokens"])
    else:
        assert found.tokens == recovery["max_steps"] * recovery["global_batch"] * recovery["seq_len"]
    assert found.adapters is (recovery["method"] == "lora")
    if "population" in recipe:
        assert (settings.params, settings.population, settings.samples) == (recipe["params"], 30, 16)


def test_a_run_directory_can_be_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What plan does not read of a run's settings is left; what nobody knows is refused."""
    settings = {
        "kind": "run",
        "model": str(model_path()),
        "params": "60%",
        "data": "text.txt",
        "race": "on",
        "out": "o",
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**settings, "recover": {"method": "distill", "data": "d", "tokens": "1M"}}))
    assert invoke(["plan", "--config", str(file), "--no-timing", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"] is None and {need["name"] for need in found["fits"]} == {"host memory", "disk"}
    assert found["budget"]["limit"] == int(0.6 * found["feasible"]["base"])
    file.write_text(yaml.safe_dump({**settings, "paras": 3}))
    assert invoke(["plan", "--config", str(file)]) == 2
    assert "unknown setting 'paras'" in capsys.readouterr().err


def test_settings_of_a_run_are_read_as_they_were_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not beside what they came to: tokens with their steps, minutes with their evaluations."""
    file = tmp_path / "config.yaml"
    recovery = {"kind": "recover", "method": "pretrain", "data": "t", "tokens": "2M", "max_steps": 7, "seq_len": 256}
    search = {"kind": "search", "data": "t", "params": "60%", "out": "o", "minutes": 2.0, "evaluations": 9}
    for settings, left in ((recovery, {"max_steps": None}), (search, {"evaluations": None})):
        file.write_text(yaml.safe_dump({"model": str(model_path()), **settings, "left_open": left}))
        argv = ["plan", "--config", str(file), "--json", *(["--no-timing"] if settings is recovery else [])]
        assert invoke(argv) == 0, capsys.readouterr().err
        found = json.loads(capsys.readouterr().out)
    assert found["time"]["seconds"] == 120


def test_the_time_of_a_recovery(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(model_path()), "--params", "60%", "recover.method=pretrain", "recover.data=d", "--json"]
    assert invoke([*argv, "recover.tokens=1M", "recover.seq_len=512"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["time"]["stages"]) == ["search", "prune", "recover"]
    tokens = training({"method": "pretrain", "tokens": "1M", "seq_len": 512}, 512).tokens
    assert 1_000_000 <= tokens < 1_020_000
    expected = (
        tokens * 3 * found["uniform"]["flops_per_token"] / (SUSTAINED["fp32"] * found["time"]["measured"]["flops"])
    )
    assert found["time"]["stages"]["recover"] == pytest.approx(expected)
    assert invoke([*argv]) == 2
    assert "'tokens' or 'max-steps' is required" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "tokens", "per_token"),
    [
        ({"method": "pretrain", "max_steps": 10, "global_batch": 4}, 40 * 128, 3 * 5),
        ({"method": "lora", "max_steps": 10}, 160 * 128, 2 * 5),
        ({"method": "distill", "max_steps": 10, "global_batch": 4, "processes": 2}, 40 * 128, (3 * 5 + 7) / 2),
        ({"method": "pretrain", "max_steps": 1}, (1 << 19), 3 * 5),
    ],
)
def test_operations_of_a_recovery(section: dict[str, Any], tokens: int, per_token: float) -> None:
    found = training({"seq_len": 128, **section}, 4096)
    assert found.tokens == tokens
    for half, share in ((False, SUSTAINED["fp32"]), (True, SUSTAINED["bf16"])):
        assert found.seconds(5.0, 7.0, 2.0, half=half) == pytest.approx(tokens * per_token / (share * 2.0))


def test_what_is_needed_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracenas.commands.plan.needs.host_memory", lambda: 1000)
    host, disk = needs(MEMORY, 100, device="cpu", gpu=None, least=1 << 60)
    assert (host.name, host.needed, host.available, host.fits) == ("host memory", 200, 1000, True)
    assert disk.needed == 100 and disk.fits
    host, disk = needs(MEMORY, 100, device="cpu", gpu=None, least=1 << 60, download=7, trained=100)
    assert (host.needed, host.fits, disk.needed) == (1600, False, 7 + 100 + 3 * 1600)
    gpu, host, disk = needs(MEMORY, 100, device="cuda", gpu=300, least=1 << 60, trained=50, adapters=True)
    assert (gpu.needed, gpu.available, gpu.fits, host.needed, disk.needed) == (200, 300, True, 140, 100)
    assert Need("GPU memory", 1 << 30, None).describe() == "1 GiB (what this machine has is not known)"
    assert Need("disk", 3 << 30, 1 << 30).describe() == "3 GiB of 1 GiB: does not fit"


def test_less_host_memory_is_named_where_it_would_do() -> None:
    host, _ = needs(MEMORY, 100, device="cpu", gpu=None, least=150)
    files = MEMORY.weights + MEMORY.compensation
    assert (host.least, host.files) == (150, files)
    assert host.describe().endswith(f", 150 B with --host-memory and {files} B of temporary files")
    host, _ = needs(MEMORY, 100, device="cpu", gpu=None, least=200)
    assert host.least is host.files is None


def test_less_of_a_gpu_is_named_where_it_would_do() -> None:
    gpu, *_ = needs(MEMORY, 100, device="cuda", gpu=300, least=1 << 60, streamed=90)
    assert gpu.describe() == f"{gpu.needed} B of 300 B: fits, 90 B with --device-memory"
    gpu, *_ = needs(MEMORY, 100, device="cuda", gpu=300, least=1 << 60, streamed=90, trained=50, adapters=True)
    assert gpu.least is None  # the training is not streamed


def test_host_memory_is_the_control_groups_where_that_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = resident.host_memory()
    assert whole is not None and whole > 1 << 28
    monkeypatch.setattr(Path, "read_text", lambda self: "12345\n" if self.name == "memory.max" else "max")
    assert resident.host_memory() == 12345
