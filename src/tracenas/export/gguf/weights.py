"""A checkpoint's tensors on disk, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tracenas.models.shards import INDEX_FILE, read_header
from tracenas.rundir import read_json

__all__ = ["Array", "StoredWeights", "Weights"]

Array = npt.NDArray[np.float32]


class Weights(Protocol):
    """Tensors by the names they have in the checkpoint."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        ...

    def read(self, name: str) -> Array:
        """The tensor, float32."""
        ...


class StoredWeights:
    """The safetensors files of a directory; nothing is kept in memory.

    Raises:
        UserError: if a file is cut short or is no safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        index = directory / INDEX_FILE
        files = sorted(set(read_json(index)["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        self._file = {name: directory / file for file in files for name in read_header(directory / file)}
        self._shapes = {name: shape for file in files for name, shape in read_header(directory / file).items()}

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor."""
        return self._shapes

    def read(self, name: str) -> Array:
        """The tensor, float32."""
        from safetensors import safe_open

        opened: Any = safe_open(str(self._file[name]), framework="pt")
        with opened as file:
            array: Array = file.get_tensor(name).float().numpy()
        return array
