"""The composed run on an accelerator: search, recovery in bf16, evaluation and speed on CUDA; DDP through torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

DEMO = Path(__file__).parents[2] / "src" / "tracenas" / "demo"
QUICK = ["samples=4", "seq_len=128", "population=4", "elites=2", "iterations=2", "windows=8"]
TRAIN = ["recover.method=pretrain", "recover.max_steps=8", "recover.global_batch=8", "recover.seq_len=128"]
BENCH = ["bench.prompt=128", "bench.new_tokens=8", "bench.trials=3"]


def run(out: Path, *more: str) -> dict[str, object]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = ["run", str(DEMO / "model"), "--data", str(DEMO / "calibration.txt"), "--params", "60%"]
    command = [*model, "--text", str(DEMO / "heldout.txt"), "--out", str(out), "--json", *QUICK, *more]
    done = subprocess.run(
        [sys.executable, "-m", "tracenas.cli", *command],
        env={**os.environ, "TRACENAS_TRACEBACK": "1"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_everything_in_bf16(tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = run(out, *TRAIN, "recover.log_every=1", "eval.windows=8", *BENCH)
    rows = {row["name"]: row for row in found["comparison"]}  # type: ignore[attr-defined]
    assert rows["found"]["recovered"]["nll"] < rows["found"]["checkpoint"]["nll"]
    bench = json.loads((out / "bench.json").read_text())
    assert bench["setting"]["device"].startswith("cuda") and bench["setting"]["dtype"] == "bfloat16"
    assert all(model["peak_memory_bytes"] > 0 for model in bench["models"])
    settings = (out / "recovered" / "recover.yaml").read_text()
    assert "dtype: bf16" in settings and "device: cuda" in settings
    records = [json.loads(line) for line in (out / "recovered" / "log.jsonl").read_text().splitlines()]
    assert all(r["tokens_per_second"] > 0 for r in records if "loss" in r)
    evaluated = json.loads((out / "evaluation.json").read_text())["results"]
    assert evaluated[-1]["nll"] == pytest.approx(rows["found"]["recovered"]["nll"], abs=2e-2)


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_processes_started_by_the_run(sharded: bool, tmp_path: Path) -> None:
    """As many processes as there are GPUs; with one, torchrun is used all the same (FSDP needs it)."""
    import torch

    count = torch.cuda.device_count()
    more = [f"recover.processes={count}", "recover.micro_batch=1"]
    if sharded and count < 2:
        pytest.skip("FSDP through run needs two GPUs; test_recover_gpu.py covers one")
    if sharded:
        more.append("recover.fsdp=true")
    found = run(tmp_path / "run", *TRAIN, *more)
    rows = {row["name"]: row for row in found["comparison"]}  # type: ignore[attr-defined]
    assert rows["found"]["recovered"]["nll"] < rows["found"]["checkpoint"]["nll"]
