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
        """The predicted rise at a width, in nats per token; between the table's widths, that of the last unit lost.

        Raises:
            ValueError: if there is no such width.
        """
        if not 0 <= kept <= len(self.saliency):
            raise ValueError(f"no width {kept} among {len(self.saliency)} units")
        place = int(np.searchsorted(self.widths, kept))
        if self.widths[place] == kept:
            return float(self.rise[place])
        return float(np.partition(self.saliency, -kept - 1)[-kept - 1])


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

    @staticmethod
    def wrote(path: Path) -> bool:
        """Whether a file is a table of `save`, if of another version."""
        try:
            with safe_open(str(path), "numpy") as file:
                return "sensitivity" in (file.metadata() or {})
        except (OSError, SafetensorError):
            return False

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
            ends = [0, len(one.saliency)] if one.saliency.ndim == one.widths.ndim == 1 else None
            if [*one.widths[:1].tolist(), *one.widths[-1:].tolist()] != ends or one.rise.shape != one.widths.shape:
                raise UserError(f"{path}: not a sensitivity table (block {index}, {name}: widths and costs differ)")
            if not (np.isfinite(one.saliency).all() and np.isfinite(one.rise).all()):
                raise UserError(f"{path}: block {index}, {name}: costs are not finite")
        return cls(costs, origin)

    @classmethod
    def load(cls, path: Path, blocks: Sequence[Block], expected: Mapping[str, Any]) -> "SensitivityTable":
        """Read what `save` wrote and check it against a model, whose widths may be other ones.

        Args:
            blocks: the model's.
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
    where = f"{path}: a sensitivity table of another space"
    specs = {(index, sub.spec.name): sub.spec for index, block in enumerate(blocks) for sub in block.sub_blocks}
    units = {key: spec for key, spec in specs.items() if spec.units}
    for (index, name), spec in units.items():
        one = costs.get((index, name))
        if one is None or one.saliency.shape != (spec.units,):
            raise UserError(f"{where}: block {index}, {name} has {spec.units} {spec.unit} here")
    for index, name in sorted(costs.keys() - units.keys()):
        raise UserError(f"{where}: block {index}, {name} has no units here")
