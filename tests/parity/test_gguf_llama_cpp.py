"""llama.cpp computes from a GGUF what transformers computes from the checkpoint: 20 random architectures per family.

Skipped without llama.cpp. To run it, build it once in an environment of its own, which takes minutes:

    python -m venv llama && llama/bin/pip install llama-cpp-python==0.3.36
    TRACENAS_LLAMA_PYTHON=llama/bin/python pytest -m parity tests/parity/test_gguf_llama_cpp.py -s
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_cases import PLAIN, checkpoint, with_tokenizer
from tiny import tiny_config

from tracenas.demo import model_path
from tracenas.errors import CheckFailed
from tracenas.exporters.gguf import export_gguf
from tracenas.families import config_family
from tracenas.models.checkpoints.source import open_source
from tracenas.space.search_space import SearchSpace

PYTHON = os.environ.get("TRACENAS_LLAMA_PYTHON")
HOW = "set TRACENAS_LLAMA_PYTHON to a Python with llama-cpp-python (how to build it: the first lines of this file)"
pytestmark = [pytest.mark.parity, pytest.mark.skipif(not PYTHON, reason=HOW)]

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama, MHA": ("llama", "deci", {"num_key_value_heads": 4}),
    "Llama, GQA": ("llama", "deci", {}),
    "Qwen 2": ("qwen2", "deci", {}),
    "Qwen 3, tied": ("qwen3", "openelm", {}),
}
# What random draws may miss: first and last block, and either half of them.
FORCED = (
    [(0, 0), (4, 96), (2, 64), (4, 32)],
    [(2, 32), (4, 64), (4, 96), (0, 0)],
    [(0, 64), (4, 96), (0, 32), (2, 96)],
    [(4, 0), (2, 64), (4, 0), (4, 96)],
    [(2, 96), (4, 32), (2, 64), (0, 96)],
    [(4, 64), (2, 32), (4, 96), (2, 0)],
    [(0, 96), (4, 0), (0, 64), (4, 0)],
)


def exported(directory: Path, **settings: Any) -> Any:
    assert PYTHON is not None
    settings = {"outtype": "f32", "check": True, "llama_python": Path(PYTHON), **settings}
    return export_gguf(open_source(str(directory)), directory.with_suffix(".gguf"), **settings)


def architectures(family: str, changes: dict[str, Any], count: int) -> list[list[tuple[int, int]]]:
    """The forced ones, and random ones of a space in which attention and MLP are skipped separately."""
    config = tiny_config(family, **{**PLAIN[family], **changes}).to_dict()
    blocks = config_family(config).blocks(config, _options())
    space = SearchSpace(tuple(b.spec for b in blocks), 0, None, "sublayer")
    rng = np.random.default_rng(7)
    drawn: list[list[tuple[int, int]]] = [list(f) for f in FORCED]
    while len(drawn) < count:
        arch = space.sample(rng)
        assert arch is not None
        drawn.append([(layer["heads"], layer["channels"]) for layer in arch.layers])
    return drawn


def _options() -> Any:
    from tracenas.families import Options

    return Options(channel_quantum=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_random_architectures(name: str, tmp_path: Path) -> None:
    family, layout, changes = FAMILIES[name]
    largest = []
    for number, counts in enumerate(architectures(family, changes, 20)):
        directory = checkpoint(tmp_path / str(number), family, counts, seed=number, options=_options(), **changes)
        made = exported(directory, layout=layout)
        assert made.check.positions == 32
        largest.append(made.check.largest)
    print(f"\n{name} ({layout}): 20 architectures, max |Δlogit| {max(largest):.2g}, median {np.median(largest):.2g}")
    assert max(largest) <= 1e-3


@pytest.mark.parametrize(
    ("family", "layout", "changes"),
    [
        ("mistral", "deci", {"sliding_window": 6}),
        ("qwen2", "deci", {"tie_word_embeddings": True}),
        ("qwen3", "padded", {"tie_word_embeddings": False}),
        ("llama", "padded", {"attention_bias": False, "mlp_bias": False}),
        ("gemma", "padded", {}),
        ("gemma2", "padded", {"query_pre_attn_scalar": 8}),
        ("gemma3_text", "padded", {"query_pre_attn_scalar": 8}),
    ],
)
def test_other_families_and_padding(family: str, layout: str, changes: dict[str, Any], tmp_path: Path) -> None:
    # ggml takes Gemma's GELU from a table in f16
    made = exported(checkpoint(tmp_path / "m", family, [(0, 64), (4, 0), (2, 96), (4, 32)], **changes), layout=layout)
    assert made.check.ok and made.check.exact == (not family.startswith("gemma"))
    print(f"\n{family}, {layout}: {made.check.describe()}")


@pytest.mark.parametrize("family", PLAIN)
def test_uniform_checkpoints(family: str, tmp_path: Path) -> None:
    assert exported(checkpoint(tmp_path / "m", family, [(4, 64)] * 4)).layout == "stock"


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0},
    ],
    ids=lambda s: str(s["rope_type"]),
)
def test_scaled_rotary_embeddings(scaling: dict[str, Any], tmp_path: Path) -> None:
    if scaling["rope_type"] != "linear":
        scaling = {**scaling, "original_max_position_embeddings": 16}
    scaling = {**scaling, "rope_theta": 10000.0}
    exported(checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 0), (2, 96), (4, 32)], rope_parameters=scaling))


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0"])
def test_smaller_types(outtype: str, tmp_path: Path) -> None:
    made = exported(checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 0), (4, 96), (4, 32)]), outtype=outtype)
    print(f"\n{outtype}: {made.check.describe()}")
    assert made.check.exact and 0 < made.check.stored.relative < {"f16": 0.01, "bf16": 0.03, "q8_0": 0.1}[outtype]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "m.gguf"]


def test_text_gets_the_same_tokens(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 0), (4, 96), (4, 32)], vocab_size=2048)
    assert exported(with_tokenizer(directory, model_path())).check.texts == (2, 2)


def test_a_wrong_file_is_not_left_and_the_first_wrong_layer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracenas.exporters.gguf.layouts import layout

    right = layout.renamed

    def wrong(weights: Any, source: str, name: str, change: Any = None) -> Any:
        """The keys of block 2 without the permutation."""
        return right(weights, source, name, None if name == "blk.2.attn_k.weight" else change)

    monkeypatch.setattr(layout, "renamed", wrong)
    directory = checkpoint(tmp_path / "m", "llama", [(2, 64), (4, 96), (4, 96), (4, 32)])
    with pytest.raises(CheckFailed, match="which was deleted: largest .*; the first layer that differs is 2: "):
        exported(directory)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
