"""`tracenas recover` in processes of its own: killed, as two of them, and sharded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from recovery_toys import log_of, save_dense, save_heterogeneous, settings, weights_of, write_instructions, write_text

from tracenas.commands.recover.command import recover

pytestmark = pytest.mark.integration

STEPS = 6


@pytest.fixture
def model(tmp_path: Path, tokenizer: Any) -> Path:
    return save_heterogeneous(save_dense(tmp_path / "dense", tokenizer), tmp_path / "pruned", tokenizer)


def arguments(model: Path, data: Path, out: Path, **changes: Any) -> list[str]:
    config = settings(model, data, out, max_steps=STEPS, **changes)
    given = {
        k: v for k, v in config.model_dump(mode="json", exclude_unset=True).items() if k != "model" and v is not None
    }
    return [str(model), *(f"{key}={str(value).lower() if value is True else value}" for key, value in given.items())]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "TRACENAS_TRACEBACK": ""}


def test_killed_and_resumed(model: Path, tmp_path: Path) -> None:
    """SIGKILL when the log says step 3 or later; the resumed run's log equals the undisturbed one's."""
    data, out = write_text(tmp_path / "text.txt", 60), tmp_path / "killed"
    slow = "import time; from tracenas.recovery.callbacks import RunLog as L; s = L.on_step_end\n"
    slow += "def late(*a, **k): s(*a, **k); time.sleep(0.3)\nL.on_step_end = late\n"
    slow += "from tracenas.cli import main; import sys; main(sys.argv[1:])"
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", slow, "recover", *arguments(model, data, out)],
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if (out / "log.jsonl").is_file() and len((out / "log.jsonl").read_bytes().split(b"\n")) > 5:
            break
        time.sleep(0.02)
    assert process.poll() is None, said.read_text()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "config.json").exists() and (out / "checkpoints" / "checkpoint-2").is_dir()
    resumed = recover(settings(model, data, out, max_steps=STEPS, resume=True))
    straight = recover(settings(model, data, tmp_path / "straight", max_steps=STEPS))
    assert log_of(out) == log_of(tmp_path / "straight") and resumed.loss == straight.loss
    first, second = weights_of(out), weights_of(tmp_path / "straight")
    assert all(torch.equal(first[name], second[name]) for name in second)


def launch(processes: int, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, *args], env=environment(), capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pretrain", "lora", "distill"])
def test_two_processes_equal_one(method: str, model: Path, tmp_path: Path) -> None:
    """The same global batch by two gloo processes: losses within 1e-4; and they resume."""
    data = write_instructions(tmp_path / "x.jsonl") if method == "lora" else write_text(tmp_path / "text.txt", 60)
    changes: dict[str, Any] = {"method": method, "learning_rate": 1e-3, "seq_len": 96 if method == "lora" else 32}
    if method != "lora":
        changes["text"] = str(write_text(tmp_path / "held-out.txt", 10, seed=1))
    recover(settings(model, data, tmp_path / "one", max_steps=STEPS, **changes))
    done = launch(2, "-m", "tracenas.cli", "recover", *arguments(model, data, tmp_path / "two", **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [r["step"] for r in one] == [r["step"] for r in two]
    for a, b in zip(one, two, strict=True):
        for key in set(a) & {"loss", "nll", "grad_norm"}:
            assert abs(a[key] - b[key]) < 1e-4, (key, a, b)
        assert a.get("tokens") == b.get("tokens")


@pytest.mark.slow
def test_wrong_input_is_exit_status_2_and_one_line(model: Path, tmp_path: Path) -> None:
    data = write_text(tmp_path / "text.txt", 60)
    done = subprocess.run(
        [sys.executable, "-m", "tracenas.cli", "recover", *arguments(model, data, tmp_path / "out"), "fsdp=true"],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("tracenas: fsdp shards over GPUs"), done.stderr


SHARDED = """
import json, sys, torch
from pathlib import Path
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from transformers import AutoModelForCausalLM
import tracenas
from tracenas.recovery import state
from tracenas.recovery.zeros import Zeros

tracenas.register()
dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
model_path, out = sys.argv[1], Path(sys.argv[2])
ids = torch.randint(1, 257, (6, 4, 16), generator=torch.Generator().manual_seed(0))


def make():
    model = AutoModelForCausalLM.from_pretrained(model_path).train()
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)


def step(model, optimizer, scheduler, batch):
    own = batch[rank * 2 : rank * 2 + 2]
    loss = model(input_ids=own, labels=own, use_cache=False).loss
    loss.backward()
    optimizer.step(); optimizer.zero_grad(); scheduler.step()
    total = loss.detach().clone(); dist.all_reduce(total)
    return float(total) / size


whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
parts = make()
losses = [step(*parts, batch) for batch in ids[:3]]
weights = get_model_state_dict(parts[0], options=whole)
optimizer = state.optimizer_state(parts[0], parts[1], sharded=True)
if rank == 0:
    from safetensors.torch import save_file
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, out / "model.safetensors")
    state.save_optimizer(out, optimizer, parts[2])
dist.barrier()
straight = [step(*parts, batch) for batch in ids[3:]]
again = make()
loaded = state.load_weights(out / "model.safetensors")
set_model_state_dict(again[0], loaded, options=StateDictOptions(full_state_dict=True, strict=False))
state.load_optimizer(out, *again, sharded=True)
resumed = [step(*again, batch) for batch in ids[3:]]
if rank == 0:
    print(json.dumps({"first": losses, "straight": straight, "resumed": resumed, "zeros": len(Zeros(again[0]))}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_state_is_saved_and_resumed(model: Path, tmp_path: Path) -> None:
    """`fully_shard` over two gloo processes: as one process trains, and exactly resumed from safetensors and JSON."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = launch(2, str(script), str(model), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["resumed"] == found["straight"] and found["zeros"] == 0
    from tracenas.models.checkpoints.loading import load

    whole = load(str(model), device="cpu").model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
    losses = []
    for batch in torch.randint(1, 257, (6, 4, 16), generator=torch.Generator().manual_seed(0)):
        loss = whole(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(found["first"] + found["straight"], abs=1e-4)
