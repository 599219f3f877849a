"""How large a GGUF file will be, to the byte, before there are any weights: its header and its aligned tensors.

The layout (GGUF 3): magic, version and two counts; per pair of metadata a key, a type and a value; per tensor its name,
dimensions, type and place; then the tensors, each from a multiple of 32 bytes on.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tracenas.exporters.gguf.layouts import FileDraft
from tracenas.exporters.gguf.writer import stored_type

__all__ = ["aligned", "file_size", "tensor_bytes", "tensor_entry"]

_ALIGNMENT, _COUNTS, _TYPE, _NUMBER, _LENGTH = 32, 24, 4, 4, 8
_Q8_BLOCK, _Q8_BYTES = 32, 34
_ELEMENT = {"f32": 4, "f16": 2, "bf16": 2}


def file_size(draft: FileDraft, metadata: Mapping[str, Any], outtype: str) -> int:
    """Bytes of what `write` writes.

    Args:
        metadata: beside the draft's own.
    """
    own = {"general.architecture": draft.arch, "general.file_type": 0, "general.quantization_version": 0}
    header = _COUNTS + metadata_bytes({**own, **metadata, **draft.metadata})
    header += sum(tensor_entry(tensor.name, len(tensor.shape)) for tensor in draft.tensors)
    return aligned(header) + sum(aligned(tensor_bytes(tensor.shape, outtype)) for tensor in draft.tensors)


def metadata_bytes(metadata: Mapping[str, Any]) -> int:
    """Of pairs of keys and values."""
    return sum(_text(key) + _TYPE + _value(value) for key, value in metadata.items())


def _value(value: Any) -> int:
    if isinstance(value, bool):
        return 1
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, Sequence):
        return _TYPE + _LENGTH + sum(map(_value, value))
    return _NUMBER


def _text(text: str) -> int:
    return _LENGTH + len(text.encode())


def tensor_entry(name: str, dimensions: int) -> int:
    """What the header says of a tensor."""
    return _text(name) + 4 + 8 * dimensions + _TYPE + 8


def tensor_bytes(shape: Sequence[int], outtype: str) -> int:
    """Of a tensor's numbers, in what it is stored in."""
    entries, kind = prod(shape), stored_type(shape, outtype)
    return entries // _Q8_BLOCK * _Q8_BYTES if kind == "q8_0" else entries * _ELEMENT[kind]


def aligned(size: int) -> int:
    """Up to the next multiple of the alignment."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT
