"""vLLM answers as transformers does: an optional tier, for it needs another environment and some minutes.

    TRACENAS_VLLM_PYTHON=/path/to/vllm-environment/bin/python pytest -m slow tests/parity/test_vllm.py

The environment needs vLLM, and this package for the plugin (`pip install --no-deps .`).
"""

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from pruned_cases import cut, dense_model
from scripts_as_modules import load_script

import tracenas
from tracenas.families import Options
from tracenas.models.checkpoints.serving import PLUGIN_FAMILIES, STOCK_VLLM_FAMILIES

PYTHON = os.environ.get("TRACENAS_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="TRACENAS_VLLM_PYTHON names no Python with vLLM"),
]

WIDTHS = [(0.5, 0.7), (1, 0.4), (0.5, 1), (1, 0)]  # the last block without MLP
REMOVED = [(0, 0.7), (1, 0), (0, 1), (0.5, 0.4)]  # layers 0 and 2 without attention, layer 1 without MLP
# A head of 32 is the smallest that vLLM's attention on the CPU takes.
HEADS = {"hidden_size": 64, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
OWN: dict[str, dict[str, Any]] = {
    "qwen3": {"attention_bias": False},  # vLLM's own Qwen3 has no bias in the output projection
    "gemma2": {"query_pre_attn_scalar": 32},
    "gemma3_text": {"query_pre_attn_scalar": 32},
    "gpt_neox": {"hidden_size": 128},
}


@dataclass
class Served:
    """A tiny model, how it is cut and how it is served."""

    family: str
    shape: list[tuple[float, float]]
    mode: str = "stock"
    stub: bool = False
    options: Options = field(default_factory=Options)


CASES = {
    **{f"{name}-plugin": Served(name, REMOVED, "plugin") for name in PLUGIN_FAMILIES},
    **{f"{name}-stock": Served(name, WIDTHS) for name in STOCK_VLLM_FAMILIES},
    "llama-stub": Served("llama", REMOVED, stub=True),
    "llama-groups-stock": Served("llama", WIDTHS, options=Options(kv_groups=True)),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All cases of a mode are asked in one process of vLLM's environment."""
    tracenas.register()
    script, root = load_script("check_vllm"), tmp_path_factory.mktemp("served")
    found = {}
    for mode in ("plugin", "stock"):
        expectations = []
        for name, case in ((n, c) for n, c in CASES.items() if c.mode == mode):
            model = dense_model(case.family, **{**HEADS, **OWN.get(case.family, {})})
            draft = cut(model, case.shape, root / name, options=case.options, stub_attention=case.stub).draft
            assert not draft.stock
            expectations.append(script.expected(draft.path, ""))
        found |= {result["model"]: result for result in script.run_other(PYTHON, expectations, mode == "plugin")}
    return found


@pytest.mark.parametrize("name", CASES)
def test_vllm_answers_as_transformers(name: str, results: dict[str, dict[str, Any]]) -> None:
    result = results[name]
    assert result["passed"], result
    backend = {"stock": "TransformersForCausalLM", "plugin": "TraceNASForCausalLM"}
    assert result["implementation"] == backend[CASES[name].mode]
