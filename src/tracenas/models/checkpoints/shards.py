"""Safetensors files written tensor by tensor, and directories that appear whole or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from tracenas.error_log import ERROR_LOG, is_error_log
from tracenas.models.checkpoints.headers import FLOATS, INDEX_FILE
from tracenas.rundir import check_free, default_mode, fsync, holding, make_directory, temporary_prefix, writing

__all__ = ["DTYPES", "NAMES", "Entry", "atomic_directory", "write_shards", "write_tensors"]

DTYPES = {
    **{name: getattr(torch, dtype) for name, dtype in FLOATS.items()},
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types by the names that safetensors headers have for them."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor that is yet to be made: what the file's header must know of it, and how to make it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * self.dtype.itemsize


def write_shards(directory: Path, entries: Sequence[Entry], max_shard_size: int | str) -> None:
    """Write `model.safetensors`, or numbered shards with an index; one tensor is in memory at a time.

    Args:
        max_shard_size: bytes, or text such as `5GB`; a larger tensor gets a shard of its own.

    Raises:
        OSError: if the disk is full.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    by_name = {entry.name: entry for entry in entries}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda entry: entry.size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        write_tensors(directory / file, [by_name[name] for name in names])
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / INDEX_FILE).write_text(text, encoding="utf-8")


def write_tensors(path: Path, entries: Sequence[Entry]) -> None:
    """Write a safetensors file; tensors are made one after the other, those of wider types first."""
    entries = sorted(entries, key=lambda e: -e.dtype.itemsize)  # keeps every tensor aligned to its elements
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size
        place = {"shape": list(entry.shape), "data_offsets": [start, end]}
        header[entry.name] = {"dtype": NAMES[entry.dtype], **place}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            tensor = entry.make()
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                actual = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise RuntimeError(f"{entry.name}: announced as {entry.shape} {entry.dtype}, made as {actual}")
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its place when the block ends without an error.

    Where `out` is a link to an empty directory, that is the place.

    Every file is on disk before the rename. After an error nothing is left.

    Raises:
        UserError: if `out` holds something already, cannot be written, or the disk is full.
    """
    check_free(out)
    out = out.resolve() if out.is_symlink() else out
    temporary: Path | None = None
    done = False
    try:
        with writing(out):
            make_directory(out.parent)
            temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(out), dir=out.parent))
            with holding(temporary):
                yield temporary
                _settle(temporary)
                if is_error_log(log := out / ERROR_LOG):  # of an earlier attempt; a directory in the way must be empty
                    log.unlink()
                temporary.replace(out)
                done = True
            fsync(out.parent)
    finally:
        if not done and temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _settle(directory: Path) -> None:
    """Usual permissions, and everything flushed to disk."""
    directory.chmod(default_mode(0o777))
    for path in directory.rglob("*"):
        fsync(path)
    fsync(directory)
