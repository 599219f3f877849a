"""The examples are what the package understands, and run as they stand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tracenas.cli import invoke
from tracenas.config import RunConfig, build
from tracenas.demo import calibration_path, heldout_path, model_path

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


def test_the_pipeline_is_valid() -> None:
    values = yaml.safe_load((ROOT / "examples" / "run.yaml").read_text(encoding="utf-8"))
    config = build(RunConfig, values)
    assert all((ROOT / path).exists() for path in (config.model, config.data, config.text))
    assert config.recover is not None and config.eval is not None and config.bench is not None


@pytest.mark.slow
def test_the_pipeline_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "run"
    assert invoke(["run", "--config", "examples/run.yaml", f"out={out}", "threads=1"]) == 0
    rows = {row["name"]: row for row in json.loads((out / "summary.json").read_text())["comparison"]}
    assert all(row["recovered"]["nll"] < row["checkpoint"]["nll"] for name, row in rows.items() if name != "base")
    assert len(json.loads((out / "bench.json").read_text())["models"]) == 4


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path: Path) -> None:
    words = [model_path(), calibration_path(), heldout_path(), tmp_path]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "quickstart.py", *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "perplexity" in done.stdout and str(tmp_path / "pruned") in done.stdout
