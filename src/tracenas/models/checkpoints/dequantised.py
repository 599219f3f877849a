"""A quantised model as a Hugging Face directory in the user's cache, made once: dequantising is slow.

The directory is named after the file's identity, appears whole or not at all, and may be removed at any time.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from tracenas.errors import UserError, one_line
from tracenas.models.checkpoints.bars import without_loading_bar
from tracenas.models.checkpoints.fp8 import Fp8Checkpoint
from tracenas.models.checkpoints.gguf import GgufFile
from tracenas.rundir import cache_directory, read_json

__all__ = ["cached_place", "dequantise", "is_complete"]

_log = logging.getLogger("tracenas")

_FORM = "4"
"""Of what is written; another one is made anew."""


def cached_place(packed: GgufFile | Fp8Checkpoint) -> Path:
    """Where the converted model is, or will be."""
    kind = "gguf" if isinstance(packed, GgufFile) else "fp8"
    return cache_directory() / kind / f"{packed.identity[:32]}-{_FORM}"


def is_complete(place: Path) -> bool:
    """Whether the conversion is there (directories appear whole)."""
    return (place / "config.json").is_file()


def dequantise(packed: GgufFile | Fp8Checkpoint, place: Path) -> None:
    """Write a quantised model into `place`: weights, configuration, tokenizer, chat template, model card.

    Raises:
        UserError: if the package gguf is missing, the file cannot be read, or `place` cannot be written.
    """
    if is_complete(place):
        return
    if isinstance(packed, GgufFile) and find_spec("gguf") is None:
        raise UserError(f"model {packed.path}: reading GGUF needs the package gguf: pip install gguf")
    _log.info("%s: %s; converted once, into %s", packed.path.name, packed.origin, place)
    from tracenas.models.checkpoints.shards import atomic_directory

    write = _gguf_writer(packed) if isinstance(packed, GgufFile) else packed.write
    try:
        with atomic_directory(place) as directory:
            write(directory)
    except UserError:
        if not is_complete(place):  # another process may have been quicker
            raise


def _gguf_writer(file: GgufFile) -> Callable[[Path], None]:
    """Reads the model; returns what writes it into a directory."""
    model, tokenizer = _read(file)
    _check(file, model)

    def write(directory: Path) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        _drop_gained_tokens(directory, model.config.vocab_size)
        (directory / "README.md").write_text(_card(file), encoding="utf-8")

    return write


def _drop_gained_tokens(directory: Path, rows: int) -> None:
    """Take out of the tokenizer's files what transformers adds by itself: tokens without a row in the embeddings."""
    path, settings = directory / "tokenizer.json", directory / "tokenizer_config.json"
    tokens = read_json(path)
    gained = {token["content"] for token in tokens["added_tokens"] if token["id"] >= rows}
    if gained:
        tokens["added_tokens"] = [token for token in tokens["added_tokens"] if token["content"] not in gained]
        stated = {k: v for k, v in read_json(settings).items() if not (isinstance(v, str) and v in gained)}
        for place, content in ((path, tokens), (settings, stated)):
            place.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read(file: GgufFile) -> tuple[Any, Any]:
    """Model in the dtype it is kept in, and tokenizer, through transformers' GGUF loader."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder, where, dtype = str(file.path.absolute().parent), {"gguf_file": file.path.name}, getattr(torch, file.dtype)
    try:
        with _quiet():
            stated = AutoConfig.from_pretrained(folder, **where)
            if hasattr(stated, "head_dim"):  # not every architecture's is read from the header
                stated.head_dim = file.config()["head_dim"]
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, config=stated, **where, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, **where)
    # what transformers' readers raise over files that they cannot place; ImportError: the package gguf is too old
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"model {file.path}: the GGUF file cannot be read: {one_line(error)}") from error
    dense, info = loaded
    if missing := [*info["missing_keys"], *(str(k) for k in info.get("mismatched_keys", ()))]:
        raise UserError(f"model {file.path}: the GGUF file lacks {len(missing)} tensors, first: {missing[0]}")
    config = dense.config
    if hasattr(config, "quantization_config"):  # transformers refuses to save what still calls itself GGUF
        del config.quantization_config
    config.dtype = dtype
    model = type(dense)(config).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = parameter.data.to(getattr(torch, file.vector_dtype))
    model.load_state_dict(dense.state_dict())
    model.tie_weights()
    model.generation_config = dense.generation_config
    return model, tokenizer


def _check(file: GgufFile, model: Any) -> None:
    """Nothing of the file was left out, and the header was understood: sizes agree, and so do all parameters."""
    count = sum(p.numel() for p in model.parameters())
    if count != file.parameters:
        raise UserError(
            f"model {file.path}: of {file.parameters:,} weights in the GGUF file {count:,} could be placed in a model "
            f"of type {model.config.model_type}; use the model's Hugging Face directory"
        )
    for key, value in file.config().items():
        if key not in ("dtype", "model_type", "head_dim") and getattr(model.config, key, None) != value:
            loaded = getattr(model.config, key, None)
            raise UserError(f"model {file.path}: '{key}' is {value} in the GGUF header and was read as {loaded}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables: what is wrong is told in one line."""
    import transformers.modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as transformers_logging

    without_loading_bar()
    level, bar = transformers_logging.get_verbosity(), vars(reader).get("tqdm")
    transformers_logging.set_verbosity(logging.CRITICAL)
    if bar is not None:
        vars(reader)["tqdm"] = lambda items, *_, **__: items
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar is not None:
            vars(reader)["tqdm"] = bar


def _card(file: GgufFile) -> str:
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if file.license is not None:
        front["license"] = file.license
    facts = {k: v for k, v in file.metadata.items() if k.startswith("general.") and isinstance(v, str | int | float)}
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n# {file.path.stem}\n\n"
        f"{file.origin[0].upper()}{file.origin[1:]}.\n\n"
        f"```json\n{json.dumps(facts, indent=2, ensure_ascii=False)}\n```\n"
    )
