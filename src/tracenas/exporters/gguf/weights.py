"""A checkpoint's tensors on disk, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tracenas.models.checkpoints.headers import prevailing, stored_tensors

__all__ = ["Array", "StoredWeights", "Weights"]

Array = npt.NDArray[np.float32]
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


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
        UserError: if a file is missing, cut short or no safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        self._tensors = stored_tensors(directory)
        if EMBEDDINGS not in self._tensors and HEAD in self._tensors:  # one tensor, under its other name
            self._tensors[EMBEDDINGS] = self._tensors.pop(HEAD)
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}

    @property
    def dtype(self) -> str | None:
        """What most of the matrices' elements are stored in, in safetensors' names; None if there is no float."""
        return prevailing((t.dtype, t.shape) for t in self._tensors.values() if len(t.shape) > 1)

    def read(self, name: str) -> Array:
        """The tensor, float32."""
        from safetensors import safe_open

        opened: Any = safe_open(str(self._tensors[name].file), framework="pt")
        with opened as file:
            array: Array = file.get_tensor(name).float().numpy()
        return array
