"""Peak memory of one model's inference on the CPU, measured in a process of its own.

Run as `python -m tracenas.benchmark.memory JSON`; prints the bytes. What is measured, as on CUDA: the model's
weights and buffers, and how far resident memory rose above where it was before the trial (cache, activations,
logits). Python and the libraries are not counted.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tracenas.benchmark.latency import TrialSettings
from tracenas.resident import peak_memory, resident_memory

__all__ = ["peak_bytes"]


def peak_bytes(
    name: str, settings: TrialSettings, *, dtype: str, threads: int, trust_remote_code: bool, seed: int
) -> int:
    """Weights, and the peak of one trial on top of them, in bytes.

    Raises:
        RuntimeError: if the process fails.
    """
    request = {
        "name": name,
        "settings": asdict(settings),
        "dtype": dtype,
        "threads": threads,
        "trust_remote_code": trust_remote_code,
        "seed": seed,
    }
    done = subprocess.run(
        [sys.executable, "-m", "tracenas.benchmark.memory", json.dumps(request)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
        raise RuntimeError(f"measuring the memory of {name}: {last}")
    return int(done.stdout.strip().splitlines()[-1])


def _forget_peak() -> None:
    """Let the peak start again from what is resident now (Linux; elsewhere an earlier, higher peak stays)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _measure(request: dict[str, Any]) -> int:
    import torch

    from tracenas.benchmark.latency import prompt_ids, run_trial
    from tracenas.models.checkpoints.loading import load
    from tracenas.models.checkpoints.source import open_source

    torch.set_num_threads(request["threads"])
    settings = TrialSettings(**request["settings"])
    source = open_source(request["name"])
    loaded = load(source, device="cpu", dtype=request["dtype"], trust_remote_code=request["trust_remote_code"])
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors)
    ids = prompt_ids(settings, int(source.config["vocab_size"]), request["seed"])
    # A short trial first: code that is imported late and weights that are read late are then in memory.
    run_trial(loaded.model, ids[:1, :8], replace(settings, prompt=min(8, settings.prompt), new_tokens=2, batch_size=1))
    _forget_peak()
    before = resident_memory() or peak_memory()
    run_trial(loaded.model, ids, settings)
    return int(weights) + max(0, peak_memory() - before)


if __name__ == "__main__":
    print(_measure(json.loads(sys.argv[1])))
