"""The sensitivity table: every sub-block's order of units and the predicted rise of the loss at each of its widths."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tracenas.errors import UserError
from tracenas.families import Block, Key
from tracenas.rundir import atomic_path
from tracenas.space.architecture import Architecture
from tracenas.space.costs import sub_blocks
from tracenas.space.sub_block import LayerSpec

__all__ = ["SensitivityTable", "WidthCosts"]

FORMAT = 1

Costs = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WidthCosts:
    """One sub-block.

    Args:
        saliency: float64 [units] by base id: the predicted rise once the unit and all before it are removed and the
            others refitted, in nats per token; the least important unit has the least.
        widths: int64 [W], ascending from 0 (bypassed) to all units.
        rise: float64 [W], predicted at these widths.
    """

    saliency: Costs
    widths: npt.NDArray[np.int64]
    rise: Costs

    def at(self, kept: int) -> float:
        """The predicted rise at a width, in nats per token.

        Raises:
            ValueError: if the table does not have it.
        """
        place = int(np.searchsorted(self.widths, kept))
        if place == len(self.widths) or self.widths[place] != kept:
            raise ValueError(f"no width {kept} among {self.widths.tolist()}")
        return float(self.rise[place])


@dataclass(frozen=True)
class SensitivityTable:
    """All sub-blocks of a model that have units.

    Args:
        costs: by (block, sub-block).
        origin: what it was measured on: JSON values by name, hashes among them.
    """

    costs: Mapping[Key, WidthCosts]
    origin: Mapping[str, Any] = field(default_factory=dict)

    def total(self, layers: Sequence[LayerSpec], arch: Architecture) -> float:
        """The predicted rise at all widths of an architecture together, in nats per token."""
        return sum(
            self.costs[index, spec.name].at(kept) for index, spec, kept in sub_blocks(layers, arch) if spec.units
        )

    def save(self, path: Path) -> None:
        """Write `<block>.<sub-block>.saliency|widths|rise` as safetensors, atomically; `origin` is the metadata."""
        tensors: dict[str, npt.NDArray[Any]] = {}
        for (index, name), one in self.costs.items():
            for kind in ("saliency", "widths", "rise"):
                tensors[f"{index}.{name}.{kind}"] = np.ascontiguousarray(getattr(one, kind))
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, {"sensitivity": json.dumps({"format": FORMAT, **self.origin})})

    @classmethod
    def read(cls, path: Path) -> "SensitivityTable":
        """Read what `save` wrote, whatever model it is of.

        Raises:
            UserError: if the file is missing or damaged.
        """
        tensors: dict[Key, dict[str, npt.NDArray[Any]]] = {}
        try:
            with safe_open(str(path), "numpy") as file:
                origin = json.loads((file.metadata() or {})["sensitivity"])
                for name in file.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                    index, sub, kind = name.split(".")
                    tensors.setdefault((int(index), sub), {})[kind] = file.get_tensor(name)
            costs = {key: WidthCosts(**kinds) for key, kinds in tensors.items()}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not a sensitivity table ({error})") from error
        if not isinstance(origin, dict) or origin.pop("format", None) != FORMAT:
            raise UserError(f"{path}: a sensitivity table of another version; measure it again")
        for (index, name), one in costs.items():
            if one.widths.ndim != 1 or not len(one.widths) or one.rise.shape != one.widths.shape:
                raise UserError(f"{path}: not a sensitivity table (block {index}, {name}: widths and costs differ)")
            if not (np.isfinite(one.saliency).all() and np.isfinite(one.rise).all()):
                raise UserError(f"{path}: block {index}, {name}: costs are not finite")
        return cls(costs, origin)

    @classmethod
    def load(cls, path: Path, blocks: Sequence[Block], expected: Mapping[str, Any]) -> "SensitivityTable":
        """Read what `save` wrote and check it against a model.

        Args:
            blocks: the model's, with the widths that are to be had.
            expected: entries of `origin` that must be equal: hashes of the model and of its tokenizer.

        Raises:
            UserError: if the file is missing, damaged, or of another model, tokenizer or space.
        """
        table = cls.read(path)
        for name, value in expected.items():
            if table.origin.get(name) != value:
                raise UserError(f"{path}: a sensitivity table of another {name}; measure it again")
        _check(path, blocks, table.costs)
        return table


def _check(path: Path, blocks: Sequence[Block], costs: Mapping[Key, WidthCosts]) -> None:
    for index, block in enumerate(blocks):
        for sub in block.sub_blocks:
            spec = sub.spec
            if not spec.units:
                continue
            one = costs.get((index, spec.name))
            where = f"{path}: a sensitivity table of another space: block {index}, {spec.name}"
            if one is None or one.saliency.shape != (spec.units,):
                raise UserError(f"{where} has {spec.units} {spec.unit} here")
            if one.widths.tolist() != [0, *spec.choices()]:
                raise UserError(f"{where} has other widths there; measure it again with these settings")
