"""Which programs serve a pruned checkpoint, and how: the section of its card. Facts of its configuration, no torch."""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["PLUGIN_FAMILIES", "STOCK_VLLM_FAMILIES", "serving_section", "with_serving", "without_attention"]

PLUGIN_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Families that the vLLM plugin builds from vLLM's own layers, with or without attention and MLP."""

STOCK_VLLM_FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Families whose heterogeneous checkpoints vLLM's Transformers backend was seen to serve (scripts/check_vllm.py)."""

_AS_IT_IS = ("llama",)
"""Families whose stock pruned checkpoints vLLM's own model was seen to serve."""

_TITLE = "## Serving"
_WITHOUT = ", trust_remote_code=False"  # not given, transformers asks whether to run the model's code
_LOAD = """```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained({name}{remote})
tokenizer = AutoTokenizer.from_pretrained({name}{plain})
```"""
_REMOTE = {True: {"remote": "", "plain": ""}, False: {"remote": ", trust_remote_code=True", "plain": _WITHOUT}}
_CODE = (
    "Its layers differ from each other. The code that builds them is in this directory (`modeling_tracenas.py`): read "
    "it before you trust it. Where tracenas is installed, `tracenas.register()` makes `trust_remote_code` unnecessary."
)


def without_attention(config: Mapping[str, Any]) -> list[int]:
    """Blocks that keep their MLP without attention, stubs not counted."""
    overrides: Mapping[str, Any] = config.get("per_layer_config") or {}
    return sorted(int(index) for index, entry in overrides.items() if "attention" in entry.get("skip", ()))


def serving_section(name: str, config: Mapping[str, Any], gguf: str | None = None) -> str:
    """Markdown: the commands that apply to this checkpoint.

    Args:
        name: of its directory.
        config: its config.json.
        gguf: the layout in which `tracenas export` writes it; None if there is none.
    """
    stock = "base_model_type" not in config
    auto = "AutoModelForSeq2SeqLM" if config.get("is_encoder_decoder") else "AutoModelForCausalLM"
    parts = [
        _TITLE,
        "**transformers**",
        _LOAD.format(name=json.dumps(name, ensure_ascii=False), auto=auto, **_REMOTE[stock]),
        "A stock checkpoint: no custom code is needed." if stock else _CODE,
        *(_stock_vllm(name, config) if stock else _vllm(name, config)),
    ]
    if gguf is not None:
        padded = " Its layers are filled up with zeros to one width." if gguf == "padded" else ""
        parts += [
            "**llama.cpp, Ollama**",
            _shell("tracenas", "export", name, "--format", "gguf", "--out", f"{name.rpartition('/')[2]}.gguf"),
            f"In the layout `{gguf}`.{padded} `--check` compares llama.cpp's logits with this checkpoint's.",
        ]
    return "\n\n".join(parts)


def _shell(*words: str) -> str:
    """A command to be copied."""
    return f"```sh\n{shlex.join(words)}\n```"


def with_serving(card: str, section: str) -> str:
    """A card with its serving section replaced; as it is if it has none."""
    return re.sub(rf"^{_TITLE}\n.*?(?=^## |\Z)", lambda _: section + "\n\n", card, count=1, flags=re.M | re.S)


def _stock_vllm(name: str, config: Mapping[str, Any]) -> list[str]:
    if config.get("model_type") not in _AS_IT_IS:
        return []
    return ["**vLLM**", _shell("vllm", "serve", name)]


def _vllm(name: str, config: Mapping[str, Any]) -> list[str]:
    family, removed = str(config["base_model_type"]), without_attention(config)
    served = []
    if not removed and family in STOCK_VLLM_FAMILIES:
        served += [_shell("vllm", "serve", name, "--trust-remote-code"), "By vLLM's Transformers backend."]
    if family in PLUGIN_FAMILIES:
        again = "Or without remote code, by" if served else "By"
        served += [
            f"{again} vLLM's own layers, with tracenas in vLLM's environment (installed with `--no-deps`):",
            _shell("vllm", "serve", name),
        ]
    if removed:
        which = ", ".join(map(str, removed))
        which = f"block {which} has no attention" if len(removed) == 1 else f"blocks {which} have no attention"
        served.append(
            f"{'Without this package' if served else 'As it is'}, vLLM cannot serve it: {which}. Pruned with "
            "`--stub-removed-attention`, it has one head of zeros there, and the same logits."
        )
    return ["**vLLM**", *served] if served else []
