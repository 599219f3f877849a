"""Recovery on an accelerator: bf16, checkpointed activations, MFU, and FSDP through torchrun."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.gpu

DEMO = Path(__file__).parents[2] / "src" / "tracenas" / "demo"


def command(out: Path, *more: str) -> list[str]:
    data = ["--data", str(DEMO / "calibration.txt"), "--text", str(DEMO / "heldout.txt")]
    given = ["max_steps=8", "global_batch=8", "micro_batch=4", "seq_len=256", "save_every=4", "log_every=1"]
    return ["recover", str(DEMO / "model"), "--method", "pretrain", *data, "--out", str(out), *given, *more]


@pytest.mark.parametrize("sharded", [False, True])
def test_bf16_and_fsdp(sharded: bool, tmp_path: Path) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    processes = torch.cuda.device_count() if sharded else 1
    start = [sys.executable]
    if sharded:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    more = ["activation_checkpointing=true", *(["fsdp=true", "micro_batch=1"] if sharded else [])]
    done = subprocess.run(
        [*start, "-m", "tracenas.cli", *command(tmp_path / "out", *more)],
        env={**os.environ, "TRACENAS_TRACEBACK": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "out" / "recovery.json").read_text())
    assert found["perplexity"] < found["perplexity_before"]
    records = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert all(record["tokens_per_second"] > 0 for record in records if "loss" in record)
    assert (tmp_path / "out" / "model.safetensors").is_file()
