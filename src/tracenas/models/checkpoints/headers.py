"""What a directory's safetensors files hold, from their headers alone: no tensor is read, torch is not imported."""

import json
import mmap
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.git_lfs import REMEDY, START
from tracenas.rundir import read_json

__all__ = [
    "FLOATS",
    "INDEX_FILE",
    "SINGLE_FILE",
    "StoredTensor",
    "equal_tensors",
    "indexed_tensors",
    "prevailing",
    "read_header",
    "stored_tensors",
]

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of floating-point types in safetensors headers, and in torch."""
_CHUNK = 1 << 24
_LONGEST_HEADER = 100_000_000
"""As the safetensors library has it."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Args:
        file: where it is, as `name`.
        dtype: as the header calls it: `F32`, `BF16`, …
        start, end: its bytes in the file.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def is_packed(self) -> bool:
        """Whether it holds quantised weights: 8-bit or 4-bit floats, or integers in place of a weight."""
        return self.dtype not in FLOATS and (self.dtype.startswith("F") or "weight" in self.name)


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor that transformers reads from a directory: of model.safetensors, else of the shards in its index.

    Raises:
        UserError: if there is no such file, one is missing, cut short or damaged, or two hold tensors of the same name
            that differ.
    """
    if (directory / SINGLE_FILE).is_file():
        return read_header(directory / SINGLE_FILE)
    if not (directory / INDEX_FILE).is_file():
        raise UserError(f"model {directory}: no {SINGLE_FILE}; only safetensors is accepted{_instead(directory)}")
    places = indexed_tensors(directory)
    files = sorted(set(places.values()))
    if absent := [name for name in files if not (directory / name).is_file()]:
        raise UserError(f"model {directory}: {len(absent)} of {len(files)} shards are missing, first: {absent[0]}")
    stored = {file: read_header(directory / file) for file in files}
    if lost := [name for name, file in places.items() if name not in stored[file]]:
        raise UserError(f"model {directory}: {counted(lost, 'is not in its shard', 'are not in their shards')}")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in (entry for shard in stored.values() for entry in shard.items()):
        other = tensors.setdefault(name, tensor)
        if other is not tensor and not equal_tensors(other, tensor):
            shards = f"{other.file.name} and {tensor.file.name}"
            raise UserError(f"model {directory}: tensor {name} is in {shards}, and not the same there")
    return tensors


def indexed_tensors(directory: Path) -> dict[str, str]:
    """Per tensor, the file that a directory's index says it is in.

    Raises:
        UserError: if the index holds something else.
    """
    index = read_json(directory / INDEX_FILE)
    places = index.get("weight_map") if isinstance(index, dict) and isinstance(index.get("metadata"), dict) else None
    if (
        not isinstance(places, dict)
        or not places
        or not all(isinstance(v, str) and len(v) < 256 for v in places.values())
    ):
        raise UserError(f"model {directory}: {INDEX_FILE} holds no weight_map and metadata")
    return places


def _instead(directory: Path) -> str:
    """What lies there in place of it, the likeliest first."""
    names = sorted(p.name for p in directory.glob("*"))
    if link := next((p for p in (directory / SINGLE_FILE, directory / INDEX_FILE) if p.is_symlink()), None):
        return f" ({link.name} is a link to {link.readlink()}, which is not there)"
    pickles = ("pytorch_model*.bin", "*.pth", "*.pt", "*.bin")
    if pickled := next((n for pattern in pickles for n in names if fnmatch(n, pattern)), None):
        return f" ({pickled} is a pickle, which is never read; convert it)"
    if shard := next((n for n in names if fnmatch(n, "model-*.safetensors")), None):
        return f" ({shard} is a shard, but there is no {INDEX_FILE})"
    if other := next((n for n in names if n.endswith((".safetensors", ".gguf"))), None):
        return f" ({other} is not what transformers reads here)"
    return ""


def counted(names: list[str], one: str, many: str) -> str:
    """`tensor a is missing`, or `3 tensors are missing, first: a`."""
    if len(names) == 1:
        return f"tensor {names[0]} {one}"
    return f"{len(names)} tensors {many}, first: {names[0]}"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises:
        UserError: if the file is cut short or is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            total = path.stat().st_size
            if length == int.from_bytes(START[:8], "little"):
                raise ValueError(REMEDY)
            if length > total:
                raise ValueError("its header is cut short")
            if length > _LONGEST_HEADER:
                raise ValueError(f"a header of {length:,} bytes; accepted: up to {_LONGEST_HEADER:,}")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no object")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
            raise ValueError("its metadata are not text")
        first = end = 8 + length
        tensors = {name: _stored(path, name, entry, first) for name, entry in header.items()}
        for tensor in sorted(tensors.values(), key=lambda t: (t.start, t.end)):
            if tensor.start != end:
                raise ValueError(f"tensor {tensor.name} begins at byte {tensor.start:,}, not at {end:,}")
            end = tensor.end
        if end != total:
            raise ValueError(f"{end} bytes announced, {total} found")
        return tensors
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged safetensors file ({error})") from error


def _stored(path: Path, name: str, entry: dict[str, Any], first: int) -> StoredTensor:
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, end - start)) or not isinstance(
        entry["dtype"], str
    ):
        raise ValueError(f"tensor {name} has no place or type")
    bits = re.search(r"\d+", entry["dtype"])
    if bits is not None and prod(shape) * int(bits.group()) != 8 * (end - start):
        raise ValueError(f"tensor {name}: {end - start:,} bytes for {entry['dtype']} {shape}")
    return StoredTensor(path, name, entry["dtype"], tuple(shape), first + start, first + end)


def prevailing(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> str | None:
    """The floating-point type of most elements among `(type, shape)`, in safetensors' names; None if there is none."""
    count: Counter[str] = Counter()
    for dtype, shape in tensors:
        if dtype in FLOATS:
            count[dtype] += prod(shape)
    return count.most_common(1)[0][0] if count else None


def equal_tensors(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors have the same numbers; read from disk, once while the files stay as they are."""
    if a.shape != b.shape:
        return False
    return _equal(a, b, *((p.stat().st_mtime_ns, p.stat().st_size) for p in (a.file, b.file)))


@lru_cache
def _equal(a: StoredTensor, b: StoredTensor, *_states: tuple[int, int]) -> bool:
    if a.dtype != b.dtype:
        return _equal_values(a, b)
    if a.end - a.start != b.end - b.start:
        return False
    with (
        a.file.open("rb") as one,
        b.file.open("rb") as other,
        mmap.mmap(one.fileno(), 0, access=mmap.ACCESS_READ) as x,
        mmap.mmap(other.fileno(), 0, access=mmap.ACCESS_READ) as y,
    ):
        starts = zip(range(a.start, a.end, _CHUNK), range(b.start, b.end, _CHUNK), strict=True)
        return all(x[i : min(i + _CHUNK, a.end)] == y[j : min(j + _CHUNK, b.end)] for i, j in starts)


def _equal_values(a: StoredTensor, b: StoredTensor) -> bool:
    import torch
    from safetensors import safe_open

    tensors = []
    for stored in (a, b):
        with safe_open(str(stored.file), framework="pt") as file:
            tensors.append(file.get_tensor(stored.name))
    wider = torch.promote_types(tensors[0].dtype, tensors[1].dtype)
    return torch.equal(tensors[0].to(wider), tensors[1].to(wider))
