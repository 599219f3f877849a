"""Units in saliency order: rank once, permute the weights once, and every candidate is a prefix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from tracenas.errors import UserError
from tracenas.families import Block, Key, Projection, SubBlock, kept_in_order, placed, present
from tracenas.families.description import IntArray, PositionBias
from tracenas.models.shipped.encoder_decoder import SelectedHeads, select_heads
from tracenas.models.surgery.streaming import on_device
from tracenas.rundir import atomic_path
from tracenas.space.architecture import Architecture

__all__ = ["Key", "Ordering", "Saliencies", "dense_weight", "permutation", "take", "weight_holder"]

Scores = npt.NDArray[np.float64]
Saliencies = tuple[dict[Key, Tensor], dict[Key, float]]
"""Of units, float64 [units] per sub-block, and the importance of every sub-block."""


@dataclass(frozen=True)
class Ordering:
    """Per sub-block: unit ids of the base, best first within each KV group, and the saliency they come from.

    Args:
        ranking: int64 [units] per sub-block; position p holds the base id of the unit at that place.
        saliency: float64 [units] per sub-block, indexed by base id.
    """

    ranking: Mapping[Key, IntArray]
    saliency: Mapping[Key, Scores]

    @classmethod
    def from_saliency(cls, blocks: Sequence[Block], saliency: Mapping[Key, torch.Tensor]) -> "Ordering":
        """Rank units by saliency, ties by id; grouped units are ranked within their group."""
        ranking: dict[Key, IntArray] = {}
        values: dict[Key, Scores] = {}
        for key, sub in present(blocks):
            score = saliency[key].detach().to("cpu", torch.float64).numpy()
            grouped = score.reshape(sub.groups, -1)
            order = np.argsort(-grouped, axis=1, kind="stable")
            first = np.arange(sub.groups)[:, None] * grouped.shape[1]
            ranking[key], values[key] = (order + first).reshape(-1).astype(np.int64), score
        return cls(ranking, values)

    def kept(self, blocks: Sequence[Block], arch: Architecture) -> dict[Key, IntArray | None]:
        """Base ids of the kept units per sub-block, ascending; None where it is bypassed."""
        out: dict[Key, IntArray | None] = {}
        for index, sub, count in placed(blocks, arch):
            key = (index, sub.spec.name)
            out[key] = kept_in_order(self.ranking[key], sub.groups, count) if count else None
        return out

    def apply(self, model: nn.Module, blocks: Sequence[Block]) -> None:
        """Permute the model's weights in place so that unit ids become ranks; the model's function is the same."""
        with torch.no_grad():
            for key, sub in present(blocks):
                _permute(model, blocks[key[0]], sub, self.ranking[key])
                if sub.position_bias is not None:
                    _permute_bias(model, blocks[key[0]], sub, sub.position_bias, self.ranking[key])

    def inverse(self) -> "Ordering":
        """The order whose `apply` undoes this one's."""
        return Ordering({key: np.argsort(r).astype(np.int64) for key, r in self.ranking.items()}, self.saliency)

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write `<block>.<sub-block>.ranking|saliency` as safetensors, atomically."""
        tensors = {f"{i}.{name}.ranking": np.ascontiguousarray(r) for (i, name), r in self.ranking.items()}
        tensors |= {f"{i}.{name}.saliency": np.ascontiguousarray(s) for (i, name), s in self.saliency.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, dict(metadata or {}))

    @classmethod
    def load(cls, path: Path, blocks: Sequence[Block]) -> "tuple[Ordering, dict[str, str]]":
        """Read what `save` wrote, with its metadata, and check it against the model's blocks.

        Raises:
            UserError: if the file is missing, damaged or of another model.
        """
        ranking: dict[Key, IntArray] = {}
        saliency: dict[Key, Scores] = {}
        try:
            with safe_open(str(path), "numpy") as file:
                metadata = dict(file.metadata() or {})
                for name in file.keys():  # noqa: SIM118 (a safetensors handle is not a mapping)
                    index, sub, kind = name.split(".")
                    target = ranking if kind == "ranking" else saliency
                    target[int(index), sub] = file.get_tensor(name)
        except (OSError, SafetensorError, ValueError) as error:
            raise UserError(f"{path}: not an ordering file ({error})") from error
        for (index, name), s in present(blocks):
            order, units = ranking.get((index, name)), s.spec.units
            if order is None or sorted(order.tolist()) != list(range(units)):
                raise UserError(f"{path}: does not fit the model: block {index}, {name} has {units} units")
        return cls(ranking, saliency), metadata


def weight_holder(model: nn.Module, block: Block, projection: Projection) -> tuple[nn.Module, str]:
    """The module that holds a projection's weight (a linear one, a norm, the experts), and the weight's name in it."""
    path, name = projection.parameter
    return model.get_submodule(f"{block.path}.{path}"), name


def dense_weight(model: nn.Module, block: Block, projection: Projection) -> Tensor:
    """The weight of a projection where the model computes, [rows, columns] or [stack, rows, columns]."""
    module, name = weight_holder(model, block, projection)
    weight: Tensor = getattr(module, name).detach()
    return on_device(model, weight)


def take(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    """The rows (axis 0) or columns (1) at `index`, [k], or [stack, k] for every matrix of a stack its own."""
    dim = axis if tensor.dim() < 3 else axis + 1
    if index.dim() == 1:
        return tensor.index_select(dim, index)
    return torch.take_along_dim(tensor, index[:, :, None] if axis == 0 else index[:, None, :], dim)


def permutation(projection: Projection, axis: int, ranking: IntArray) -> IntArray | None:
    """New order of an axis when position p holds unit `ranking[p]`; None where units do not lie on it.

    int64 [n]; [stack, n] where matrices are stacked, every one with its own units.
    """
    if not projection.segments(axis):
        return None
    if projection.stack:
        ranks = ranking.reshape(projection.stack, -1)
        first = np.arange(projection.stack, dtype=np.int64)[:, None] * ranks.shape[1]
        return np.stack([_permutation(projection, axis, local) for local in ranks - first])
    return _permutation(projection, axis, ranking)


def _permutation(projection: Projection, axis: int, ranking: IntArray) -> IntArray:
    order = np.arange(projection.length(axis), dtype=np.int64)
    for segment in projection.segments(axis):
        index = segment.indices(len(ranking))
        order[index] = index[ranking]
    return order


def _permute_bias(model: nn.Module, block: Block, sub: SubBlock, bias: PositionBias, ranking: IntArray) -> None:
    """Let heads in a new order read their own columns of the table of position biases, which stays as it is."""
    attention = model.get_submodule(f"{block.path}.{sub.module}")
    before = attention.bias_heads if isinstance(attention, SelectedHeads) else bias.heads
    after = [before[i] for i in ranking] if bias.table else ()
    select_heads(attention, model.get_submodule(bias.table) if bias.table else None, after)


def _permute(model: nn.Module, block: Block, sub: SubBlock, ranking: IntArray) -> None:
    for projection in (*sub.projections, *sub.width_norms):
        module, name = weight_holder(model, block, projection)
        weight = getattr(module, name)
        for axis in (0, 1):
            order = permutation(projection, axis, ranking)
            if order is None:
                continue
            index = torch.from_numpy(order).to(weight.device)
            weight.copy_(take(weight, axis, index))
            bias = getattr(module, "bias", None)
            if axis == 0 and projection.bias and isinstance(bias, torch.Tensor):
                bias.copy_(bias.index_select(0, index))
