"""Tiny checkpoints and data for the recovery tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import SHAPE, partly_kept
from transformers import AutoConfig, AutoModelForCausalLM

from tracenas.config import RecoverConfig
from tracenas.families import Options, config_family
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.card import model_card
from tracenas.models.checkpoints.writing import Draft, save_pruned

TINY: dict[str, Any] = {
    **SHAPE,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "max_position_embeddings": 128,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
WORDS = tuple(f"{first}{second}" for first in ("ca", "do", "hou", "sle") for second in ("t", "g", "se", "ep", "re"))


def save_dense(path: Path, tokenizer: Any, **changes: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{**TINY, **changes}))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def save_heterogeneous(dense: Path, path: Path, tokenizer: Any) -> Path:
    """Block 0 without attention, block 1 narrower; its card names the dense model."""
    model = AutoModelForCausalLM.from_pretrained(dense)
    config = model.config.to_dict()
    family = config_family(config)
    blocks = family.blocks(config, Options())

    def card(draft: Draft) -> str:
        return model_card(path.name, str(dense), blocks, draft.layers, serving="## Serving\n\nSo.", parameters=(2, 1))

    assert not save_pruned(model, BaseFiles(dense), family, blocks, partly_kept(blocks), path, card=card).stock
    return path


def save_sparse(dense: Path, path: Path, tokenizer: Any) -> Path:
    """Half of every linear weight in the blocks zero."""
    model = AutoModelForCausalLM.from_pretrained(dense)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "_proj" in name:
                weight.mul_(torch.rand(weight.shape, generator=generator) < 0.5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "sparsity.json").write_text("{}")
    return path


def write_text(path: Path, documents: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 30)))) for _ in range(documents)]
    path.write_text("\n<|endoftext|>\n".join(texts))
    return path


def write_instructions(path: Path, rows: int = 11) -> Path:
    made = [{"instruction": f"Say {WORDS[i % 9]}", "input": "", "output": WORDS[i % 9]} for i in range(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def settings(model: Path, data: object, out: Path, **changes: Any) -> RecoverConfig:
    values: dict[str, Any] = {
        "model": str(model),
        "method": "pretrain",
        "data": str(data),
        "out": out,
        "max_steps": 6,
        "global_batch": 4,
        "batch": 2,
        "seq_len": 32,
        "save_every": 2,
        "log_every": 1,
        "learning_rate": 1e-2,
        "device": "cpu",
        "threads": 1,
    }
    return RecoverConfig(**{**values, **changes})


def log_of(out: Path) -> list[dict[str, Any]]:
    """The log without times."""
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "mfu")} for r in records]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")
