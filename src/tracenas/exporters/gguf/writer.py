"""Writing a GGUF file tensor by tensor."""

import logging
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts import FileDraft, Tensor
from tracenas.exporters.gguf.weights import Array

__all__ = ["Encode", "RandomData", "encoded", "stored_type", "write"]

_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK = 32

Encode = Callable[[Tensor, str], Any]
"""A tensor's data in what it is stored in."""


def stored_type(shape: Sequence[int], outtype: str) -> str:
    """What a tensor is stored in: vectors in f32, and where rows are no multiple of 32 wide f16 instead of q8_0."""
    if len(shape) < 2:
        return "f32"
    if outtype == "q8_0" and shape[-1] % _BLOCK:
        return "f16"
    return outtype


def encoded(tensor: Tensor, kind: str) -> Any:
    """What the tensor is made of.

    Raises:
        UserError: if it holds NaN or infinities, or numbers beyond the range of f16.
    """
    array = tensor.make()
    if array.shape != tensor.shape:
        raise RuntimeError(f"{tensor.name}: announced as {tensor.shape}, made as {array.shape}")
    largest = float(np.abs(array).max(initial=0.0))
    if not np.isfinite(largest):
        raise UserError(f"tensor {tensor.sources[0]} holds NaN or infinities; nothing was written")
    if kind == "f16" and largest > 65504:
        raise UserError(f"tensor {tensor.sources[0]} holds {largest:g}, more than f16 can; use --outtype bf16 or f32")
    return _quantised(array, kind)


class RandomData:
    """Encodes random numbers in the place of every tensor, the same in those of one shape: for trials of speed."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._known: dict[tuple[tuple[int, ...], str], Any] = {}

    def __call__(self, tensor: Tensor, kind: str) -> Any:
        """Ones in vectors, which are norms mostly."""
        key = (tensor.shape, kind)
        if key not in self._known:
            drawn = self._rng.standard_normal(tensor.shape, np.float32) * np.float32(0.02)
            self._known[key] = _quantised(drawn if len(tensor.shape) > 1 else np.ones_like(drawn), kind)
        return self._known[key]


def write(path: Path, draft: FileDraft, metadata: Mapping[str, Any], outtype: str, encode: Encode = encoded) -> None:
    """Write header, metadata and tensors; one tensor is in memory at a time.

    Args:
        metadata: beside the draft's own.
        outtype: `f32`, `f16`, `bf16` or `q8_0`.
        encode: the tensors' data.

    Raises:
        UserError: if a tensor holds NaN or infinities, or numbers beyond the range of f16.
        OSError: if the disk is full.
    """
    import gguf

    logging.getLogger("gguf").setLevel(logging.WARNING)
    writer: Any = gguf.GGUFWriter(None, draft.arch)
    writer.add_uint32("general.file_type", _FILE_TYPE[outtype])
    writer.add_uint32("general.quantization_version", gguf.GGML_QUANT_VERSION)
    scalars = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in {**metadata, **draft.metadata}.items():
        scalars.get(type(value), writer.add_array)(key, value)
    for tensor in draft.tensors:
        kind = _ggml_type(stored_type(tensor.shape, outtype))
        size = prod(gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in draft.tensors:
            writer.write_tensor_data(encode(tensor, stored_type(tensor.shape, outtype)))
    finally:
        writer.close()


def _quantised(array: Array, kind: str) -> Any:
    import gguf

    return gguf.quants.quantize(np.ascontiguousarray(array), _ggml_type(kind))


def _ggml_type(kind: str) -> Any:
    import gguf

    return getattr(gguf.GGMLQuantizationType, kind.upper())
