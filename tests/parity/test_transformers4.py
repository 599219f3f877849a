"""Stock pruned checkpoints in words of transformers 4, which takes its defaults for keys that it does not find.

What version 4 reads is written down here; the slow test runs it, where `TRACENAS_TRANSFORMERS4` names a Python that has
it (with torch and safetensors).
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import FLAN, auto_class, logits_of, tiny_model
from tokenizers import Tokenizer, models
from transformers import AutoConfig

from tracenas.models.checkpoints.loading import load
from tracenas.models.checkpoints.writing import save_pruned

pytestmark = pytest.mark.parity
INTERPRETER = os.environ.get("TRACENAS_TRANSFORMERS4")

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32}
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}


def rotary(theta: float, **scaling: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """`(version 5's keys, version 4's)` of rotary positions."""
    five = {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}
    return five, {"rope_theta": theta, "rope_scaling": scaling or None}


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": rotary(5e5),
    "llama scaled": rotary(5e5, **LLAMA3),
    "llama yarn": rotary(2e4, **YARN),
    "mistral": rotary(1e6),
    "qwen2": rotary(1e6),
    "qwen3": rotary(1e6),
    "gemma": rotary(2e4),
    "gemma2": rotary(2e4),
    "olmo2": rotary(5e5),
    "mixtral": rotary(1e6),
    "qwen3_moe": (rotary(1e6)[0], {**rotary(1e6)[1], "num_experts": 4}),
    "gemma3_text": (
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
            }
        },
        {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "gpt_neox": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}},
        {"rotary_emb_base": 2e4, "rotary_pct": 0.5},
    ),
    "phi3": (
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 2e4, **FACTORS},
        },
        {
            "rope_theta": 2e4,
            "original_max_position_embeddings": 16,
            "rope_scaling": {"type": "longrope", **FACTORS},
        },
    ),
    "phi3 partial": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 2e4, "partial_rotary_factor": 0.5}},
        {"rope_theta": 2e4, "partial_rotary_factor": 0.5, "rope_scaling": None},
    ),
    "t5": ({}, {"tie_word_embeddings": True}),
    "t5 flan": (FLAN, {"tie_word_embeddings": False}),
}


def save_base(path: Path, name: str, *, version: int) -> dict[str, Any]:
    """A tiny base whose config.json says rotary positions in one version's words; returns version 4's."""
    five, four = CASES[name]
    tiny_model(name.split()[0], **five).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    if version == 4:
        config = {k: v for k, v in config.items() if k not in ("rope_parameters", "dtype", "num_local_experts")}
        if name == "mixtral":
            config["num_local_experts"] = 4
        config |= {**four, "torch_dtype": "float32", "transformers_version": "4.46.0", "written_by": "hand"}
    config["_name_or_path"] = str(path)
    (path / "config.json").write_text(json.dumps(config))
    Tokenizer(models.BPE(vocab={"a": 0}, merges=[])).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    return four


def save_stock(base: Path, out: Path) -> dict[str, Any]:
    """The base with half of the channels; returns config.json."""
    loaded = load(str(base), device="cpu", dtype="fp32")
    kept = {
        (i, s.spec.name): np.arange(s.spec.units // (2 if s.spec.unit.endswith("channels") else 1))
        if not s.stacked
        else np.concatenate(
            [np.arange(s.spec.units // s.groups // 2) + g * s.spec.units // s.groups for g in range(s.groups)]
        )
        for i, b in enumerate(loaded.blocks())
        for s in b.sub_blocks
    }
    assert save_pruned(loaded.model, loaded.files, loaded.source.family, loaded.blocks(), kept, out).stock
    config: dict[str, Any] = json.loads((out / "config.json").read_text())
    return config


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", CASES)
def test_both_versions_keys_are_there(name: str, version: int, tmp_path: Path) -> None:
    base = tmp_path / "base"
    four = save_base(base, name, version=version)
    config = save_stock(base, tmp_path / "out")
    for key, value in four.items():
        assert config.get(key) == value, key
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert ("rope_parameters" in config) == (not name.startswith("t5"))
    before = json.loads((base / "config.json").read_text())
    changed = {"intermediate_size", "moe_intermediate_size", "d_ff", "max_window_layers", "_name_or_path"}
    changed |= {"tie_word_embeddings"} if name == "t5 flan" else set()  # which transformers 5 always says of a T5
    for key, value in before.items():
        assert config.get(key) == value or key in changed, key
    assert config["_name_or_path"] == "base"
    # transformers 5 reads the same from it as from the base
    ids = torch.arange(3, 43)[None]
    small = auto_class(name.split()[0]).from_pretrained(tmp_path / "out")
    large = AutoConfig.from_pretrained(base)
    for key in ("tie_word_embeddings", "scale_decoder_outputs"):
        assert getattr(small.config, key, None) == getattr(large, key, None)
    assert rotary_parameters(small.config) == rotary_parameters(large)
    assert logits_of(small, ids).isfinite().all()


def rotary_parameters(config: Any) -> dict[str, Any]:
    """Without the older name of `rope_type`."""
    return {k: v for k, v in (getattr(config, "rope_parameters", None) or {}).items() if k != "type"}


SCRIPT = """
import sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
assert transformers.__version__.startswith("4."), transformers.__version__
for line in sys.stdin.read().splitlines():
    kind, path = line.split("\\t")
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model = auto.from_pretrained(path, attn_implementation="eager")
    AutoTokenizer.from_pretrained(path)
    ids = torch.arange(3, 43)[None]
    more = {"decoder_input_ids": ids} if kind == "t5" else {}
    with torch.no_grad():
        torch.save(model.float().eval()(ids, **more).logits, path + "/logits.pt")
"""


@pytest.mark.slow
@pytest.mark.skipif(not INTERPRETER, reason="TRACENAS_TRANSFORMERS4 names no Python with transformers 4")
def test_version_4_computes_the_same(tmp_path: Path) -> None:
    paths = {}
    for number, (name, version) in enumerate((name, version) for name in CASES for version in (4, 5)):
        save_base(tmp_path / f"base{number}", name, version=version)
        paths[name, version] = tmp_path / f"out{number}"
        save_stock(tmp_path / f"base{number}", paths[name, version])
    lines = "\n".join(f"{name.split()[0]}\t{path}" for (name, _), path in paths.items())
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert INTERPRETER is not None
    done = subprocess.run([INTERPRETER, "-c", SCRIPT], input=lines, text=True, capture_output=True, env=clean)
    assert done.returncode == 0, done.stderr[-2000:]
    for (name, version), path in paths.items():
        model = auto_class(name.split()[0]).from_pretrained(path, attn_implementation="eager").eval()
        expected = logits_of(model, torch.arange(3, 43)[None])
        found = torch.load(path / "logits.pt", weights_only=True)
        worst = (found - expected).abs().max().item()
        assert worst <= 1e-4 * max(1.0, expected.abs().max().item()), f"{name}, written by {version}: {worst}"
