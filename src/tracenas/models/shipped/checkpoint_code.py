"""The file `modeling_tracenas.py` of a heterogeneous checkpoint: its text, and the names of the classes in it.

The file is this one, `layers.py`, and `decoder_only.py` or `encoder_decoder.py`, joined, and one line that builds the
classes of its family. So none of them imports anything but torch, transformers and each other.
"""

import ast
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
)

if not hasattr(getattr(transformers, "PreTrainedConfig", None), "per_layer_config"):
    raise ImportError("this model's layers differ from each other: it needs transformers 5.17 or newer")

CODE_FILE = "modeling_tracenas.py"
_PREFIX = "TraceNAS"


def is_encoder_decoder(model_type: str) -> bool:
    """Whether transformers has this family's language model as an encoder–decoder only."""
    config = CONFIG_MAPPING[model_type]
    return config not in MODEL_FOR_CAUSAL_LM_MAPPING and config in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING


def language_model(model_type: str) -> Any:
    """transformers' class of a family's model with a language-model head.

    Raises:
        KeyError: if there is none.
    """
    config = CONFIG_MAPPING[model_type]
    if is_encoder_decoder(model_type):
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[config]
    return MODEL_FOR_CAUSAL_LM_MAPPING[config]


def stock_classes(base_model_type: str) -> tuple[Any, Any, Any]:
    """transformers' `(configuration, model, language model)` of a family.

    Raises:
        KeyError: if transformers has no such family.
    """
    config = CONFIG_MAPPING[base_model_type]
    return config, MODEL_MAPPING[config], language_model(base_model_type)


def class_names(base_model_type: str) -> tuple[str, str, str]:
    """Names of the classes that are built over those of `stock_classes`: the same after `TraceNAS`."""
    config, model, head = (_PREFIX + c.__name__ for c in stock_classes(base_model_type))
    return config, model, head


def family_named(class_name: str) -> str:
    """The family whose `class_names` has this name; empty for another name."""
    stock = getattr(transformers, class_name.removeprefix(_PREFIX), None) if class_name.startswith(_PREFIX) else None
    return str(getattr(getattr(stock, "config_class", stock), "model_type", ""))


def auto_map(base_model_type: str) -> dict[str, str]:
    """The `auto_map` of config.json: which class of the shipped file each Auto class is to use."""
    names = class_names(base_model_type)
    last = "AutoModelForSeq2SeqLM" if is_encoder_decoder(base_model_type) else "AutoModelForCausalLM"
    autos = ("AutoConfig", "AutoModel", last)
    return {auto: f"{CODE_FILE.removesuffix('.py')}.{name}" for auto, name in zip(autos, names, strict=True)}


def shipped_code(base_model_type: str) -> str:
    """The text of `modeling_tracenas.py` for a family."""
    here = Path(__file__)
    if here.name == CODE_FILE:
        return here.read_text(encoding="utf-8")
    builder = "encoder_decoder" if is_encoder_decoder(base_model_type) else "decoder_only"
    files = [here, here.with_name("layers.py"), here.with_name(f"{builder}.py")]
    parts = [_without_package_imports(path.read_text(encoding="utf-8")) for path in files]
    return "\n\n".join([*parts, f'{", ".join(class_names(base_model_type))} = build_{builder}("{base_model_type}")\n'])


def _without_package_imports(source: str) -> str:
    """A module's text without its imports from tracenas: what they name stands in the same file."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tracenas."):
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return "".join(lines)
