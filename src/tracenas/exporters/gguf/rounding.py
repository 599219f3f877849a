"""Whether every tensor of a file is the one that was meant, up to the rounding of its type."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tracenas.errors import CheckFailed
from tracenas.exporters.gguf.layouts import Tensor
from tracenas.exporters.gguf.weights import Array

__all__ = ["check_stored", "rounding"]

_BLOCK = 32


def rounding(tensor: Array, kind: str) -> Array:
    """The largest error of storing each number: half a step of its type.

    f32 0; f16 2^-11 |w| (2^-25 where f16 is subnormal); bf16 2^-8 |w|; q8_0, in blocks of 32 with the scale
    d = max |w| / 127 in f16: d / 2 and 127 times the error of d.
    """
    size = np.abs(tensor)
    if kind == "f16":
        return size * np.float32(2.0**-11) + np.float32(2.0**-25)
    if kind == "bf16":
        return size * np.float32(2.0**-8)
    if kind == "q8_0":
        largest = size.reshape(-1, _BLOCK).max(axis=1, keepdims=True)
        error = largest / 254 + largest * np.float32(2.0**-10) + np.float32(127 * 2.0**-25)
        return np.broadcast_to(error, (len(error), _BLOCK)).reshape(tensor.shape)
    return np.zeros_like(size)


def check_stored(file: Path, tensors: Sequence[Tensor]) -> None:
    """Read a file back, tensor by tensor.

    Raises:
        CheckFailed: naming the first tensor that is missing, or is not what was meant.
    """
    import gguf

    stored: dict[str, Any] = {t.name: t for t in gguf.GGUFReader(file).tensors}
    other = stored.keys() ^ {t.name for t in tensors}
    if other:
        raise CheckFailed(f"the file has other tensors than were meant: {min(other)}")
    for tensor in tensors:
        kind, meant = stored[tensor.name].tensor_type, tensor.make()
        values = gguf.quants.dequantize(stored[tensor.name].data, kind).reshape(meant.shape)
        if (np.abs(values - meant) > rounding(meant, kind.name.lower())).any():
            raise CheckFailed(
                f"tensor {tensor.name} of the file is not the checkpoint's, beyond the rounding of {kind.name}"
            )
