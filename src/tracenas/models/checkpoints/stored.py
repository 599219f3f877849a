"""What tensors are called and shaped on disk, where that is not as in memory, in both directions.

transformers renames (`lm_head` is stored as `embed_out`) and fuses (one tensor per expert becomes one of all) when
it reads. Other tools read the files, so they are written as the family's own are.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from tracenas.models.checkpoints.configuration import empty_model, named_tensors
from tracenas.models.checkpoints.headers import StoredTensor
from tracenas.models.checkpoints.shards import DTYPES, Entry

__all__ = ["as_loaded", "as_stored", "in_memory"]


def in_memory(model: Any) -> dict[str, Entry]:
    """A model's tensors by name, tied ones once, as they are in memory."""
    return {n: Entry(n, tuple(t.shape), t.dtype, t.detach) for n, t in named_tensors(model)}


# --- from files to the model ----------------------------------------------------------------------


def as_loaded(model: Any, stored: Mapping[str, StoredTensor]) -> dict[str, Entry]:
    """What files hold, by the names and in the shapes that the tensors have in the model that transformers makes of it.

    Every tensor is read anew, memory-mapped, in the type it is stored in. What the model does not have is left out,
    and so is what is stored in a type that is none of `DTYPES`.

    Args:
        model: of the files; its weights are not used.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    state = model.state_dict()
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    files = _Files()
    entries: dict[str, Entry] = {}
    groups: dict[str, _Group] = {}
    for key in sorted((k for k, t in stored.items() if t.dtype in DTYPES), key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if name not in state:
            continue
        if pattern is None:
            tensor = stored[key]
            entries[name] = Entry(name, tensor.shape, DTYPES[tensor.dtype], partial(files.read, tensor))
        else:
            converter = next(c for c in converters if pattern in c.source_patterns)
            groups.setdefault(name, _Group(model.config, name, converter, files)).parts.append((pattern, stored[key]))
    for group in groups.values():
        entries |= group.entries()
    for name, source in model.all_tied_weights_keys.items():
        if source not in entries and name in entries:
            entries[source] = replace(entries[name], name=source)
    return entries


class _Files:
    """Reads tensors of safetensors files; the last file stays open."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: Any = None

    def read(self, tensor: StoredTensor) -> Tensor:
        """The tensor, memory-mapped."""
        if self._path != tensor.file:
            self._path, self._file = tensor.file, safe_open(str(tensor.file), framework="pt")
        read: Tensor = self._file.get_tensor(tensor.name)
        return read


class _Group:
    """Tensors of files that transformers makes into others, such as one of all experts."""

    def __init__(self, config: Any, name: str, converter: Any, files: _Files) -> None:
        self.config, self.name, self.converter, self.files = config, name, converter, files
        self.parts: list[tuple[str, StoredTensor]] = []

    def entries(self) -> dict[str, Entry]:
        """What becomes of them."""
        empty = (torch.empty(t.shape, dtype=DTYPES[t.dtype], device="meta") for _, t in self.parts)
        converted = self._converted(empty)
        return {n: Entry(n, tuple(t.shape), t.dtype, partial(self._make, n)) for n, t in converted.items()}

    def _make(self, name: str) -> Tensor:
        return self._converted(self.files.read(tensor) for _, tensor in self.parts)[name]

    def _converted(self, tensors: Iterable[Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(self.converter)
        for (pattern, stored), tensor in zip(self.parts, tensors, strict=True):
            converter.add_tensor(self.name, stored.name, pattern, tensor)
        converted = converter.convert(self.name, config=self.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in converted.items()}


# --- from the model to files ----------------------------------------------------------------------


def as_stored(config: Mapping[str, Any], entries: Iterable[Entry]) -> list[Entry]:
    """The entries of a model that the stock configuration builds, as the family stores them.

    An entry that becomes several is made once for all of them, if they are made one after the other.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    model = empty_model(config)
    if not get_model_conversion_mapping(model, add_legacy=False):
        return list(entries)
    source = _Source(model)
    out = []
    for entry in entries:
        stand_in = torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        for name, part in source.revert(entry.name, stand_in).items():
            out.append(Entry(name, tuple(part.shape), part.dtype, partial(source.make, entry, name)))
    return out


class _Source:
    """Makes tensors as they are stored; remembers the parts of the last one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def revert(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Names and tensors that stand for this one in a file."""
        from transformers.core_model_loading import revert_weight_conversion

        parts: dict[str, Tensor] = revert_weight_conversion(self.model, {name: tensor})
        return parts

    def make(self, entry: Entry, part: str) -> Tensor:
        """One of the tensors that stand for an entry."""
        if self._last[0] != entry.name:
            self._last = (entry.name, self.revert(entry.name, entry.make()))
        return self._last[1][part]
