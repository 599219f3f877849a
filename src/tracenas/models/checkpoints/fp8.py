"""FP8 checkpoints (`quant_method: fp8`): matrices of 8-bit floats, each with scales, as DeepSeek and Qwen publish them.

W = Q · S, where an entry of S stands for a block of `weight_block_size` entries of Q (the last blocks may be cut off),
or one S for the whole matrix. Headers are read without torch.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.errors import UserError
from tracenas.models.checkpoints.base_files import LICENCE
from tracenas.models.checkpoints.headers import FLOATS, StoredTensor, stored_tensors

if TYPE_CHECKING:
    import torch

__all__ = ["Fp8Checkpoint", "is_fp8", "read_fp8"]

_QUANTISED = "F8_E4M3"
_SCALE = "_scale_inv"
_OF_ACTIVATIONS = ("activation_scale", "input_scale", "k_scale", "v_scale")
_CARRIED = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt")
"""Endings of the files that go on with the weights, beside the licence: tokenizer, chat template, generation config."""


@dataclass(frozen=True)
class Fp8Checkpoint:
    """A directory with FP8 weights.

    Args:
        config: what config.json says, without its quantisation.
        block: rows and columns that share a scale; None where a matrix has one for all.
        stored: every tensor in the files.
    """

    path: Path
    config: Mapping[str, Any]
    block: tuple[int, int] | None
    stored: Mapping[str, StoredTensor]

    @property
    def dtype(self) -> str:
        """What the weights become: the type that config.json names, else bfloat16."""
        named = str(self.config.get("dtype") or self.config.get("torch_dtype"))
        return named if named in FLOATS.values() else "bfloat16"

    @property
    def origin(self) -> str:
        """One sentence for people: that these are not the weights that were quantised."""
        return (
            f"weights read from {self.path.resolve().name} (FP8): dequantised to {self.dtype}, "
            "not the ones that it was quantised from"
        )

    @property
    def identity(self) -> str:
        """Hexadecimal; another one where config.json, a header, or a file's size or time of modification differs."""
        files = {t.file.name: t.file.stat() for t in self.stored.values()}
        states = sorted((n, s.st_size, s.st_mtime_ns) for n, s in files.items())
        places = [(t.name, t.dtype, t.shape, t.start) for t in self.stored.values()]
        text = json.dumps([dict(self.config), self.block, states, places], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The model's tensors as they are once dequantised: without scales, none of them FP8."""
        name = next(name for name, dtype in FLOATS.items() if dtype == self.dtype)
        return {
            t.name: replace(t, dtype=name) if t.dtype == _QUANTISED else t
            for t in self.stored.values()
            if not t.name.endswith((_SCALE, *_OF_ACTIVATIONS))
        }

    def write(self, directory: Path) -> None:
        """Write the dequantised model, one tensor in memory at a time, and what goes on with it.

        Raises:
            OSError: if the disk is full.
        """
        from tracenas.models.checkpoints.shards import DTYPES, Entry, write_shards

        entries = [Entry(n, t.shape, DTYPES[t.dtype], partial(self._make, n)) for n, t in self.tensors.items()]
        write_shards(directory, entries, "5GB")
        text = json.dumps({**self.config, "dtype": self.dtype}, indent=2, sort_keys=True) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")
        for path in self.path.iterdir():
            carried = any(fnmatch(path.name, one) for one in LICENCE) or path.name.endswith(_CARRIED)
            if carried and path.is_file() and path.name != "config.json" and not path.name.endswith(".index.json"):
                shutil.copyfile(path, directory / path.name)

    def _make(self, name: str) -> "torch.Tensor":
        import torch
        from safetensors import safe_open

        def read(stored: StoredTensor) -> torch.Tensor:
            with safe_open(str(stored.file), framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored.name)
            return tensor

        weight = read(self.stored[name])
        if self.stored[name].dtype != _QUANTISED:
            return weight
        scale = read(self.stored[name + _SCALE]).float()
        if scale.numel() > 1:
            assert self.block is not None  # `read_fp8` has seen to it
            for axis, (side, count) in enumerate(zip(weight.shape, self.block, strict=True)):
                scale = scale.repeat_interleave(count, axis).narrow(axis, 0, side)
        return (weight.float() * scale).to(getattr(torch, self.dtype))


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that the weights are of this form."""
    quantised = config.get("quantization_config")
    return isinstance(quantised, Mapping) and quantised.get("quant_method") == "fp8"


def read_fp8(name: str, path: Path, config: Mapping[str, Any]) -> Fp8Checkpoint:
    """Read the headers, and check that every FP8 matrix has its scales.

    Args:
        name: of the model, for messages.
        config: what config.json says.

    Raises:
        UserError: for weights of another form.
    """
    quantised = config["quantization_config"]
    block = quantised.get("weight_block_size")
    sides = isinstance(block, list) and len(block) == 2 and all(isinstance(n, int) and n > 0 for n in block)
    if block is not None and not sides:
        raise UserError(f"model {name}: weight_block_size is {block!r}; expected two numbers")
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    checkpoint = Fp8Checkpoint(path, plain, tuple(block) if block is not None else None, stored_tensors(path))
    for tensor in checkpoint.stored.values():
        if tensor.dtype == _QUANTISED and (trouble := _trouble(checkpoint, tensor)):
            raise UserError(f"model {name}: FP8 tensor {tensor.name} {trouble}; it cannot be dequantised")
    return checkpoint


def _trouble(checkpoint: Fp8Checkpoint, tensor: StoredTensor) -> str | None:
    """What is wrong with the scales of an FP8 tensor, if anything."""
    scale = checkpoint.stored.get(tensor.name + _SCALE)
    if len(tensor.shape) != 2 or scale is None:
        return f"has no '{_SCALE}' beside it" if scale is None else f"has the shape {list(tensor.shape)}"
    if scale.dtype not in FLOATS:
        return f"has scales of type {scale.dtype}"
    grids = [(), (1,), (1, 1)]
    if checkpoint.block is not None:
        grids.append(tuple(-(-side // count) for side, count in zip(tensor.shape, checkpoint.block, strict=True)))
    return None if scale.shape in grids else f"of shape {list(tensor.shape)} has scales of shape {list(scale.shape)}"
