"""What of a model is in memory while it is loaded from shards, and while a checkpoint is written: never two models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCRIPT = """
import json, sys, threading, time
from pathlib import Path
import torch
from tracenas.models.checkpoints.loading import dtypes_to_save, load
from tracenas.models.checkpoints.source import open_source
from tracenas.models.checkpoints.writing import save_pruned
from tracenas.models.surgery.ordering import Ordering
from tracenas.families import present
from tracenas.recovery.pretrain import write_final
from tracenas.resident import give_back, resident_memory

torch.set_num_threads(1)
home, out = Path(sys.argv[1]), Path(sys.argv[2])
peak, done = [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], resident_memory("RssAnon"))
        time.sleep(0.001)

def taken(work):
    give_back()
    before = peak[0] = resident_memory("RssAnon")
    result = work()
    return result, peak[0] - before

threading.Thread(target=watch, daemon=True).start()
load(str(home / "small"), device="cpu", dtype="fp32")  # everything is imported
loaded, loading = taken(lambda: load(str(home / "model"), device="cpu", dtype="fp32"))
source, blocks = loaded.source, loaded.blocks()
space = source.space()
base = space.base
saliency = {key: torch.arange(sub.spec.units, dtype=torch.float64) for key, sub in present(blocks)}
kept = Ordering.from_saliency(blocks, saliency).kept(blocks, base)
_, pruning = taken(lambda: save_pruned(
    loaded.model, loaded.files, source.family, blocks, kept, out / "pruned",
    tensors=loaded.tensors(), max_shard_size="8MB"
))
_, writing = taken(lambda: write_final(
    loaded.model, loaded.files, out, dtypes=dtypes_to_save("fp32", source, loaded.model), config=source.config,
    family=source.family, readme="", copied={}, max_shard_size="8MB"
))
done.set()
size = sum(p.numel() * 4 for p in loaded.model.parameters())
largest = max(p.numel() * 4 for p in loaded.model.parameters())
print(json.dumps({"size": size, "largest": largest, "loading": loading, "pruning": pruning, "writing": writing}))
"""


def test_shards_are_read_and_written_without_a_second_model(tmp_path: Path, tokenizer: Any) -> None:
    for name, hidden in (("small", 64), ("model", 512)):
        config = transformers.LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=12,
            num_attention_heads=8,
            vocab_size=4096,
        )
        with torch.random.fork_rng():
            model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(tmp_path / name, max_shard_size="8MB")
        tokenizer.save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 4
    (tmp_path / "out").mkdir()
    argv = [sys.executable, "-c", SCRIPT, str(tmp_path), str(tmp_path / "out")]
    found = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    assert found["loading"] < 1.2 * found["size"], found
    assert max(found["pruning"], found["writing"]) < 4 * found["largest"], found
    assert 12 * found["largest"] < found["size"]
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 8
