"""`tracenas plan` against a real search of the demo model in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tracenas.demo import calibration_path, model_path

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SETTINGS = ["--params", "60%", "--population", "6", "--elites", "2", "--iterations", "2", "--samples", "8"]
SETTINGS += ["--seq-len", "256", "--threads", "1", "--device", "cpu"]


def command(*argv: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "tracenas.cli", *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_estimates_are_of_the_right_size(tmp_path: Path) -> None:
    """Memory within a factor of 2; time is not asserted, for a test machine may be busy."""
    out = tmp_path / "run"
    plan = command("plan", str(model_path()), *SETTINGS, "--json")
    command("search", str(model_path()), "--data", str(calibration_path()), *SETTINGS, "--out", str(out), "--json")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["evaluations"] <= plan["evaluations"] == 10
    assert plan["time"]["seconds_per_evaluation"] > 0
    assert 0.5 < plan["memory_bytes"]["total"] / summary["peak_memory_bytes"] < 2
