"""How a family says where its units live: which rows and columns of which matrices go with a unit.

Everything that supernet, masking, saliency, checkpoint and cost counting know about a model comes from these
records, so that fused projections, biases and grouped queries need no special case anywhere else. No torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tracenas.families.rotary import rotary_keys
from tracenas.space.architecture import Layer
from tracenas.space.sub_block import LayerSpec, SubBlockSpec

__all__ = [
    "MOST_HEADS",
    "WIDEST",
    "Attribute",
    "Block",
    "Family",
    "IntArray",
    "Options",
    "PositionBias",
    "Projection",
    "Segment",
    "SubBlock",
    "block_count",
    "kept_in_order",
]

IntArray = npt.NDArray[np.int64]
WIDEST, MOST_HEADS, _MOST_BLOCKS = 1 << 20, 1024, 1024
"""Many times what any model has: beyond that config.json is wrong, and nothing of such a size is made."""


def block_count(config: Mapping[str, Any], key: str) -> int:
    """How many blocks config.json says there are.

    Raises:
        ValueError: if there cannot be so many.
    """
    count = int(config[key])
    if count > _MOST_BLOCKS:
        raise ValueError(f"{key} is {count:,}; accepted: up to {_MOST_BLOCKS:,}")
    return count


@dataclass(frozen=True)
class Segment:
    """Unit j occupies `size` consecutive indices from `offset + j · stride` on."""

    size: int
    offset: int = 0
    stride: int | None = None

    def indices(self, units: int) -> IntArray:
        """Where the units are, [units, size]."""
        stride = self.size if self.stride is None else self.stride
        return self.offset + np.arange(units)[:, None] * stride + np.arange(self.size)


@dataclass(frozen=True)
class Projection:
    """One weight matrix of a sub-block, [rows = outputs, columns = inputs], and how units lie in it.

    Where `stack` is not 0 it is the matrices of that many experts in one parameter [stack, rows, columns]: `path` is
    then the parameter's own, the segments are those of one matrix, and units are numbered expert after expert.
    """

    path: str
    """Module path below the block (`self_attn.q_proj`)."""
    rows: int
    columns: int
    row_units: tuple[Segment, ...] = ()
    """Where units lie among the rows; rows in no segment are fixed (they stay with every width)."""
    column_units: tuple[Segment, ...] = ()
    bias: bool = False
    source: str = ""
    """Projections with the same source read the same input tensor (q, k and v: the block's normed input)."""
    stack: int = 0
    active: int = 0
    """How many of the stacked matrices multiply each token."""

    def __post_init__(self) -> None:
        if not (0 < self.rows <= WIDEST and 0 < self.columns <= WIDEST and 0 <= self.stack <= WIDEST):
            size = " × ".join(f"{side:,}" for side in (self.stack, self.rows, self.columns) if side)
            raise ValueError(f"{self.path} would be {size}; accepted: sides up to {WIDEST:,}")

    def length(self, axis: int) -> int:
        """Rows (axis 0) or columns (1)."""
        return self.rows if axis == 0 else self.columns

    def segments(self, axis: int) -> tuple[Segment, ...]:
        """Where units lie on an axis."""
        return self.row_units if axis == 0 else self.column_units

    @property
    def parameter(self) -> tuple[str, str]:
        """Module below the block, and the name of the weight in it."""
        if not self.stack:
            return self.path, "weight"
        module, _, name = self.path.rpartition(".")
        return module, name

    def unit_ids(self, axis: int, units: int) -> IntArray:
        """Per row (axis 0) or column (axis 1): the unit it belongs to, -1 where it is fixed.

        int64 [n]; [stack, n] where matrices are stacked.
        """
        if not self.stack:
            return self.matrix_unit_ids(axis, units)
        each = units // self.stack
        owner = self.matrix_unit_ids(axis, each)
        first = np.arange(self.stack, dtype=np.int64)[:, None] * each
        return np.where(owner < 0, owner, owner + first)

    def matrix_unit_ids(self, axis: int, units: int) -> IntArray:
        """The same in one matrix of `units` units."""
        owner = np.full(self.length(axis), -1, dtype=np.int64)
        for segment in self.segments(axis):
            owner[segment.indices(units)] = np.arange(units)[:, None]
        return owner

    def parameters(self, units: int) -> tuple[int, int, float, float]:
        """`(per unit, fixed, weights per unit, fixed weights)`: parameters, and what multiplies each token."""
        count, used = (self.stack, self.active / self.stack) if self.stack else (1, 1)
        units //= count
        unit_rows, unit_columns = (sum(s.size for s in at) for at in (self.row_units, self.column_units))
        fixed_rows = self.rows - units * unit_rows
        fixed_columns = self.columns - units * unit_columns
        if min(unit_rows, unit_columns, fixed_rows, fixed_columns) < 0:
            raise ValueError(f"{units:,} units do not fit into {self.path}, {self.rows:,} × {self.columns:,}")
        weights = unit_rows * fixed_columns + unit_columns * fixed_rows
        fixed = fixed_rows * fixed_columns * count
        return weights + unit_rows * self.bias, fixed + count * fixed_rows * self.bias, weights * used, fixed * used


@dataclass(frozen=True)
class Attribute:
    """A number that transformers' module keeps beside its weights: `path` = kept units · `factor` // `divisor`.

    The path may lead through an object that blocks share (`self_attn.config.num_attention_heads`): the candidate's
    block gets its own copy of it.
    """

    path: str
    divisor: int = 1
    factor: int = 1

    def value(self, kept: int) -> int:
        """The number at `kept` units."""
        return kept * self.factor // self.divisor


@dataclass(frozen=True)
class PositionBias:
    """A bias per head and pair of positions that the first block makes and every block hands on to the next (T5).

    As blocks keep different heads, each one reads the columns of its own from the original model's whole table.
    """

    table: str = ""
    """Path of the embedding [buckets, heads of the original model]; empty where nothing is learned
    (cross-attention). It stands in the first block, stays whole, and stays when that block is skipped."""
    heads: tuple[int, ...] = ()
    """Per unit: its column in the table."""


@dataclass(frozen=True)
class SubBlock:
    """One sub-block of one block: its matrices, its output projection, and what a bypass removes."""

    spec: SubBlockSpec
    projections: tuple[Projection, ...]
    """The last one is the output projection."""
    module: str
    """Path of the module that is replaced by a stub when the sub-block is bypassed."""
    norms: tuple[str, ...] = ()
    """Modules outside `module` that a checkpoint drops with the bypassed sub-block."""
    post_norm: str = ""
    """Path of the RMS norm (no bias) that the output passes before it is added to the residual stream; empty where
    it is added as it is."""
    groups: int = 1
    """Units are pruned equally in each of `groups` equal, consecutive ranges (KV groups, experts)."""
    attributes: tuple[Attribute, ...] = ()
    outputs: int = 1
    """How many values `module` returns (attention: the hidden states and the weights)."""
    width_norms: tuple[Projection, ...] = ()
    """Norms inside `module` that run over the width of all units (OLMo 2's q and k norms), not per unit: their
    weight, as a matrix of one column, is ordered and cut with the units, and they then run over the kept ones."""
    position_bias: PositionBias | None = None

    @property
    def output_projection(self) -> Projection:
        """The projection whose inputs carry the units (o_proj, down_proj): saliency is taken there."""
        return self.projections[-1]

    @property
    def output(self) -> str:
        """Path of the output projection."""
        return self.output_projection.path

    @property
    def stacked(self) -> bool:
        """Whether units lie in the fused matrices of experts, which are no linear modules (and are not refitted)."""
        return bool(self.output_projection.stack)


@dataclass(frozen=True)
class Block:
    """One block of the model: where it is and its sub-blocks (a bypassed one has 0 units in its spec)."""

    path: str
    sub_blocks: tuple[SubBlock, ...]
    stack: str = ""
    """`encoder` or `decoder`; empty in decoder-only models."""
    hands_on: tuple[str, ...] = ()
    """Arguments of the block's `forward` that it returns behind the hidden states."""

    @property
    def spec(self) -> LayerSpec:
        """The block as the search space sees it."""
        return LayerSpec(tuple(s.spec for s in self.sub_blocks), self.stack)


@dataclass(frozen=True)
class Options:
    """How the user wants units to be cut."""

    channel_quantum: int = 32
    head_quantum: int = 1
    kv_groups: bool = False
    """Whole KV groups are the attention units, instead of query heads within every group."""
    kv_quantum: int = 1
    """Of whole KV groups."""


class Family(Protocol):
    """What one `model_type` must say about itself; one file in this package and one line in its registry.

    A family derives from this class: what has a body here is what most of them say.
    """

    model_type: str

    stacks: tuple[str, ...] = ()
    """Names of the stacks that blocks stand in (`encoder`, `decoder`); none in decoder-only models."""
    head_names: tuple[str, ...] = ("lm_head.weight",)
    """What the head's matrix may be called in files."""
    embedding_names: tuple[str, ...] = ("model.embed_tokens.weight", "embed_tokens.weight")
    """What the embeddings may be called in files."""
    final_norm: str = "model.norm"
    """Path of the norm whose output enters the head."""

    def normalised(self, config: Mapping[str, Any], stores: Callable[[str], bool] | None) -> Mapping[str, Any]:
        """`config.json` with the keys that all families have, and what it should have said: as it is.

        Args:
            stores: whether the model's files hold a tensor of this name; None where they are not at hand.
        """
        return config

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether head and embeddings are one tensor."""
        ...

    def blocks(self, config: Mapping[str, Any], options: Options) -> tuple[Block, ...]:
        """Every block of the model, from `config.json` (per-layer overrides of pruned models included)."""
        ...

    def outside(self, config: Mapping[str, Any]) -> int:
        """Parameters outside the blocks: embeddings, head (once if tied), final norm."""
        ...

    def head_weights(self, config: Mapping[str, Any]) -> int:
        """Entries of the language-model head's matrix."""
        ...

    def version_4(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a stock configuration of transformers 5 is called in version 4, where the names differ."""
        return rotary_keys(config.get("rope_parameters") or {})

    def layer_overrides(self, config: Mapping[str, Any], index: int, block: Block, layer: Layer) -> dict[str, Any]:
        """The `per_layer_config` entry of block `index` cut to `layer`."""
        ...

    def renumbered(self, config: Mapping[str, Any], remaining: Sequence[int]) -> dict[str, Any]:
        """What config.json says by the blocks' numbers, once only `remaining` are left (lists of all: not here)."""
        return {}

    def stub_overrides(self, config: Mapping[str, Any], index: int) -> dict[str, Any] | None:
        """What `layer_overrides` says of block `index` if one head is left; None where that cannot be written."""
        return None


def kept_in_order(ranking: IntArray, groups: int, kept: int) -> IntArray:
    """The `kept` best units: the first `kept / groups` of the ranking within each group, ids ascending.

    Args:
        ranking: unit ids in the base, best first within each of `groups` consecutive ranges, [units].
    """
    per_group = ranking.reshape(groups, -1)
    return np.sort(per_group[:, : kept // groups].reshape(-1))
