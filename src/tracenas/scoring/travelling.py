"""What measures candidates in bytes, for processes that load the model: everything but the model, in its own buffers.

Whatever is the super-network's, or a module or tensor of its model, is written as its name, and is what the other
process has under that name. What lies on the model's device lies on that of the other process's model.
"""

import io
import pickle
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tracenas.models.surgery.supernet import Supernet
from tracenas.scoring.combined import CombinedEvaluator
from tracenas.scoring.evaluator import Evaluator
from tracenas.scoring.raced import RacingEvaluator

__all__ = ["CandidateScorer", "Parcel", "packed", "unpacked"]

CandidateScorer = Evaluator | CombinedEvaluator | RacingEvaluator
_NET, _DEVICE = "net", "device"


@dataclass(frozen=True)
class Parcel:
    """What measures candidates, without the model.

    Args:
        structure: what it is made of.
        buffers: bytes of its tensors and arrays, which may lie in memory that nobody may write; as tensors they are in
            memory that processes share.
    """

    structure: bytes
    buffers: Sequence[NDArray[np.uint8] | Tensor]


def packed(thing: Any, net: Supernet) -> Parcel:
    """A scorer, or whatever else measures candidates of a super-network."""
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    _Packer(net, file, buffers).dump(thing)
    return Parcel(file.getvalue(), [np.frombuffer(b.raw(), np.uint8) for b in buffers])


def unpacked(parcel: Parcel, net: Supernet) -> Any:
    """The same on a super-network of the same model and order."""
    unpacker = _Unpacker(net, parcel)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # what is shared is read, never written
        return unpacker.load()


class _Packer(pickle.Pickler):
    def __init__(self, net: Supernet, file: io.BytesIO, buffers: list[pickle.PickleBuffer]) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffers.append)
        self._names = {id(thing): name for name, thing in _named(net).items()}
        self._device = net.device

    def persistent_id(self, thing: Any) -> str | None:
        """The name of what the model has."""
        if isinstance(thing, torch.device) and thing == self._device:
            return _DEVICE
        return self._names.get(id(thing)) if isinstance(thing, Supernet | nn.Module | Tensor) else None

    def reducer_override(self, thing: Any) -> Any:
        """Tensors as bytes beside the structure."""
        if type(thing) is not Tensor:
            return NotImplemented
        plain = thing.detach().cpu()
        span = 1 + sum((n - 1) * step for n, step in zip(plain.shape, plain.stride(), strict=True))
        flat: Any = plain.as_strided((span if plain.numel() else 0,), (1,)).clone().view(torch.uint8).numpy()
        return _tensor, (pickle.PickleBuffer(flat), thing.dtype, tuple(plain.shape), plain.stride(), thing.device)


class _Unpacker(pickle.Unpickler):
    def __init__(self, net: Supernet, parcel: Parcel) -> None:
        super().__init__(
            io.BytesIO(parcel.structure), buffers=[b.numpy() if isinstance(b, Tensor) else b for b in parcel.buffers]
        )
        self._things = {**_named(net), _DEVICE: net.device}

    def persistent_load(self, name: str) -> Any:
        """What has the name here."""
        return self._things[name]


def _named(net: Supernet) -> dict[str, Any]:
    """The super-network, its model's modules and its tensors, by name."""
    modules = {f"module {path}": module for path, module in net.model.named_modules()}
    tensors = {f"tensor {name}": t for name, t in (*net.model.named_parameters(), *net.model.named_buffers())}
    return {_NET: net, **modules, **tensors}


def _tensor(
    buffer: Any, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], device: torch.device
) -> Tensor:
    """With the strides that it had: products of a transposed matrix round differently."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype).as_strided(shape, strides).to(device)
