"""What lies in a model directory beside, or in place of, what transformers reads; torch is not imported."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from tracenas.errors import UserError
from tracenas.rundir import read_json

__all__ = ["ADAPTER", "BESIDE", "SPARSITY", "check_directory", "holds_weights", "quantisation", "refuse_adapter"]

ADAPTER = "adapter_config.json"
SPARSITY = "sparsity.json"
"""Of a checkpoint that `tracenas sparsify` wrote: which weights are zero."""
BESIDE = ("README.md", SPARSITY)
"""Files beside config.json that say what a model is."""
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files that transformers reads before model.safetensors."""
_WEIGHTS = (".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def check_directory(name: str, path: Path) -> None:
    """Refuse a directory that holds no model, or more than one: an adapter, or one process's part of a sharded one.

    Raises:
        UserError: naming the file.
    """
    adapted = (path / ADAPTER).is_file()
    if not (path / "config.json").is_file():
        raise UserError(f"model {name}: the directory holds no config.json{_instead(path, adapted)}")
    if adapted:
        refuse_adapter(name)
    if part := next((p.name for p in sorted(path.glob("shard-*.safetensors")) if _DISTRIBUTED.fullmatch(p.name)), None):
        raise UserError(f"model {name}: {part} is of a distributed checkpoint; save the model with save_pretrained")


def holds_weights(path: Path) -> bool:
    """Whether there are weights in a directory, of whatever format; a configuration alone can be planned."""
    return any(p.name.endswith(_WEIGHTS) for p in path.glob("*"))


def refuse_adapter(name: str) -> NoReturn:
    """Refuse a model with an adapter beside it: transformers would load the sum of both where peft is installed.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"model {name}: a PEFT adapter ({ADAPTER}) lies beside the model, and would be added to it; merge it "
        "(peft's merge_and_unload), or move the adapter's files away"
    )


def _instead(path: Path, adapted: bool) -> str:
    """What a directory without config.json holds, as far as that helps."""
    if adapted:
        adapter = read_json(path / ADAPTER)
        base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
        return f" but a PEFT adapter of {base or 'a model'}: merge it (merge_and_unload) and save the result"
    if snapshots := sorted(p for p in path.glob("snapshots/*/config.json")):
        return f"; it is a hub cache: name {snapshots[0].parent}"
    if files := sorted(path.glob("*.gguf")):
        return f" but GGUF files: name one, such as {files[0]}"
    if (path / "params.json").is_file():
        return " but a model in its maker's own format (params.json); convert it to Hugging Face's"
    if inner := sorted(path.glob("*/config.json")):
        return f"; {inner[0].parent} does"
    return ""


def quantisation(config: Mapping[str, Any]) -> str | None:
    """The method that config.json says the weights are quantised by, None if they are not."""
    text = config.get("text_config")
    for place in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "compression_config"):
            if (settings := place.get(key)) is not None:
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                loads = isinstance(settings, Mapping) and (settings.get("load_in_4bit") or settings.get("load_in_8bit"))
                return str(method or ("bitsandbytes" if loads else f"a method that {key} does not name"))
    return None
