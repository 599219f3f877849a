"""What of a checkpoint leaves this machine, and whether it can: it is whole, and names no local path."""

import re
from pathlib import Path

import torch

from tracenas.errors import UserError
from tracenas.models.checkpoints.base_files import copied_files
from tracenas.models.checkpoints.directory import BESIDE, SPARSITY
from tracenas.models.checkpoints.headers import INDEX_FILE, SINGLE_FILE, stored_tensors
from tracenas.models.checkpoints.loading import LoadedModel, load

__all__ = ["check_loads", "check_names", "published_files"]

_CARD, _ARCHITECTURE = "README.md", "architecture.json"
_NAMED = ("config.json", _ARCHITECTURE, *BESIDE, "*.py")
_WRITTEN = (_CARD, "config.json", "generation_config.json", SPARSITY, _ARCHITECTURE)
"""Files that tell of how a checkpoint was made; a tokenizer's are its maker's."""

_LOCAL = re.compile(r"(?<![\w/:.@)-])(?<!\]\()(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}|\b[A-Za-z]:\\\w+")


def published_files(directory: Path) -> list[Path]:
    """A checkpoint's own files, the weights that its index names included; nothing else that lies there.

    Raises:
        UserError: if there is no config.json, no card, or a shard is missing or damaged.
    """
    for name in ("config.json", _CARD):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: holds no {name}, which a checkpoint on the hub must have")
    weights = {tensor.file for tensor in stored_tensors(directory).values()}
    named = {path for pattern in _NAMED for path in directory.glob(pattern) if path.is_file()}
    if (directory / SINGLE_FILE) not in weights:
        named.add(directory / INDEX_FILE)
    return sorted({*named, *weights, *copied_files(directory)})


def check_names(files: list[Path]) -> None:
    """Refuse files that name paths of this machine.

    Raises:
        UserError: with file, line and path.
    """
    for path in (file for file in files if file.name in _WRITTEN):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if match := _LOCAL.search(line):
                raise UserError(f"{path}, line {number}: names a path of this machine, {match[0]}; put a name there")


def check_loads(directory: Path) -> LoadedModel:
    """The checkpoint, loaded as a user would: every tensor is there, and it computes finite numbers.

    Raises:
        UserError: if not.
    """
    loaded = load(str(directory), device="cpu", dtype="bf16")
    ids = torch.arange(min(8, int(loaded.source.config["vocab_size"])))[None]
    decoder = {"decoder_input_ids": ids} if loaded.source.is_encoder_decoder else {}
    with torch.inference_mode():
        logits = loaded.model(input_ids=ids, **decoder).logits
    if not torch.isfinite(logits).all():
        raise UserError(f"model {directory}: computes numbers that are not finite")
    return loaded
