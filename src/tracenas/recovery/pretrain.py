"""The model side of a recovery run: what is trained, what a checkpoint holds, and the plain model in the end."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Family
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.headers import FLOATS, prevailing, stored_tensors
from tracenas.models.checkpoints.shards import Entry, write_shards
from tracenas.models.checkpoints.stored import as_stored, in_memory
from tracenas.models.checkpoints.written_config import for_both_versions, is_stock, write_config
from tracenas.recovery.checkpoints import publish
from tracenas.recovery.trainer import Saver
from tracenas.rundir import fsync

__all__ = ["saver", "write_final"]


def saver(model: Any, files: BaseFiles, max_shard_size: str = "5GB") -> Saver:
    """Writes a Hugging Face directory, or the adapters alone of a peft model."""

    def save(directory: Path, gathered: Mapping[str, Tensor] | None, write: bool) -> None:
        if not write:
            return
        extra: dict[str, Any] = {} if gathered is None else {"state_dict": dict(gathered)}
        if not hasattr(model, "peft_config"):
            extra["max_shard_size"] = max_shard_size
        model.save_pretrained(directory, **extra)
        files.copy(directory, stock=is_stock(files.config))

    return save


def write_final(
    model: Any,
    files: BaseFiles,
    out: Path,
    *,
    dtypes: Mapping[str, torch.dtype],
    config: Mapping[str, Any],
    family: Family,
    readme: str,
    copied: Mapping[str, Path],
    max_shard_size: str,
) -> None:
    """Write the recovered model into `out`, beside the run's own files, a tensor at a time; config.json comes last.

    Args:
        model: a plain causal language model on the CPU.
        files: of what was recovered.
        dtypes: of the written weights, by name.
        config: config.json of what was recovered; only its dtype is changed, to what most weights have.
        copied: further files, name → source.

    Raises:
        OSError: if the disk is full; what was there is intact.
    """
    entries = [_cast(entry, dtypes[name]) for name, entry in in_memory(model).items()]
    temporary = out / ".final"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write_shards(temporary, as_stored(config, entries) if is_stock(config) else entries, max_shard_size)
        files.copy(temporary, stock=is_stock(config))
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        for name, source in copied.items():
            shutil.copyfile(source, temporary / name)
        config = {k: v for k, v in config.items() if k != "torch_dtype"} | {"dtype": _main_dtype(temporary)}
        write_config(temporary, for_both_versions(config, family) if is_stock(config) else config)
        complete = out / ".whole"
        publish(temporary, complete)
        for path in sorted(complete.iterdir(), key=lambda p: (p.name == "config.json", p.name)):
            path.replace(out / path.name)
        fsync(out)
        complete.rmdir()
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cast(entry: Entry, dtype: torch.dtype) -> Entry:
    """A tensor of the model in another type, that it has once it is written; whole numbers keep theirs."""
    if not entry.dtype.is_floating_point:
        return entry
    return replace(entry, dtype=dtype, make=lambda: entry.make().to(dtype))


def _main_dtype(directory: Path) -> str:
    """What most weights of a directory are stored in, by torch's name."""
    main = prevailing((tensor.dtype, tensor.shape) for tensor in stored_tensors(directory).values())
    return FLOATS[main or "F32"]
