"""A checkpoint's tensors on disk, read one at a time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tracenas.models.checkpoints.headers import prevailing, stored_tensors

__all__ = ["Array", "StoredWeights", "Weights"]

Array = npt.NDArray[np.float32]
BASE, EMBEDDINGS, HEAD = "model.", "model.embed_tokens.weight", "lm_head.weight"


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
    """The safetensors files of a directory, by the names of the model with its head; nothing is kept in memory.

    Raises:
        UserError: if a file is missing, cut short or no safetensors file.
    """

    def __init__(self, directory: Path) -> None:
        tensors = stored_tensors(directory)
        bare = EMBEDDINGS not in tensors and EMBEDDINGS.removeprefix(BASE) in tensors  # saved without the head
        self._tensors = {BASE * (bare and name != HEAD) + name: tensor for name, tensor in tensors.items()}
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

        stored = self._tensors[name]
        opened: Any = safe_open(str(stored.file), framework="pt")
        with opened as file:
            array: Array = file.get_tensor(stored.name).float().numpy()
        return array
