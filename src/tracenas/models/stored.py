"""What a stock checkpoint's tensors are called and shaped on disk, where that is not as in memory.

transformers renames (`lm_head` is stored as `embed_out`) and fuses (one tensor per expert becomes one of all) when
it reads. Other tools read the files, so they are written as the family's own are.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tracenas.models.shards import Entry

__all__ = ["as_stored"]


def as_stored(config: Mapping[str, Any], entries: Iterable[Entry]) -> list[Entry]:
    """The entries of a model that the stock configuration builds, as the family stores them.

    An entry that becomes several is made once for all of them, if they are made one after the other.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from tracenas.models.heterogeneous import language_model

    config_class: Any = CONFIG_MAPPING[config["model_type"]]
    causal: Any = language_model(config["model_type"])
    with torch.device("meta"):
        model = causal(config_class.from_dict(dict(config)))
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
