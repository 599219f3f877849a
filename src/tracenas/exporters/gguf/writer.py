"""Writing a GGUF file tensor by tensor."""

import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.exporters.gguf.layouts import FileDraft, Tensor

__all__ = ["stored_type", "write"]

_FILE_TYPE = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_BLOCK = 32


def stored_type(shape: Sequence[int], outtype: str) -> str:
    """What a tensor is stored in: vectors in f32, and where rows are no multiple of 32 wide f16 instead of q8_0."""
    if len(shape) < 2:
        return "f32"
    if outtype == "q8_0" and shape[-1] % _BLOCK:
        return "f16"
    return outtype


def write(path: Path, draft: FileDraft, metadata: Mapping[str, Any], outtype: str) -> None:
    """Write header, metadata and tensors; one tensor is in memory at a time.

    Args:
        metadata: beside the draft's own.
        outtype: `f32`, `f16`, `bf16` or `q8_0`.

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
    kinds = {name: getattr(gguf.GGMLQuantizationType, name.upper()) for name in _FILE_TYPE}
    for tensor in draft.tensors:
        kind = kinds[stored_type(tensor.shape, outtype)]
        size = prod(gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind))
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in draft.tensors:
            writer.write_tensor_data(_data(tensor, stored_type(tensor.shape, outtype), kinds))
    finally:
        writer.close()


def _data(tensor: Tensor, kind: str, kinds: Mapping[str, Any]) -> Any:
    import gguf

    array = tensor.make()
    if array.shape != tensor.shape:
        raise RuntimeError(f"{tensor.name}: announced as {tensor.shape}, made as {array.shape}")
    largest = float(np.abs(array).max(initial=0.0))
    if not np.isfinite(largest):
        raise UserError(f"tensor {tensor.sources[0]} holds NaN or infinities; nothing was written")
    if kind == "f16" and largest > 65504:
        raise UserError(f"tensor {tensor.sources[0]} holds {largest:g}, more than f16 can; use --outtype bf16 or f32")
    return gguf.quants.quantize(np.ascontiguousarray(array), kinds[kind])
