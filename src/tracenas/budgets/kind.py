"""What a budget says of itself, and where the model is to be served."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tracenas.benchmark.latency_table import LatencyTable
from tracenas.families import Block, Projection, SubBlock
from tracenas.models.checkpoints.headers import prevailing, stored_tensors
from tracenas.models.checkpoints.source import ModelSource
from tracenas.space.architecture import Architecture
from tracenas.space.costs import Cost
from tracenas.space.sub_block import SubBlockSpec

__all__ = [
    "ELEMENT",
    "STORED",
    "Counted",
    "Kind",
    "Serving",
    "SubBlocks",
    "found",
    "matrices",
    "stored_as",
    "sub_blocks",
]

STORED = ("f32", "f16", "bf16", "q8_0")
"""What matrices may be stored in, in the words of `tracenas export`."""

ELEMENT = {"f32": 4, "f16": 2, "bf16": 2}
"""Bytes of a number."""

_OF_FILES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_OF_CONFIG = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Serving:
    """How the model is served.

    Args:
        context: tokens that a new token attends to, itself among them.
        batch: sequences at once.
        stored: what matrices are stored in, of `STORED`.
        prompt: tokens that a prefill reads; None: nothing depends on it.
    """

    context: int
    batch: int = 1
    stored: str = "bf16"
    prompt: int | None = None

    @property
    def cache_element(self) -> int:
        """Bytes of a number in the KV cache: as the weights; two beside quantised ones, as llama.cpp has it."""
        return ELEMENT.get(self.stored, 2)


@dataclass(frozen=True)
class Counted:
    """What a cost is counted of.

    Args:
        blocks: the model's, in the units that are cut.
        latency: what serves the model takes so long; None: not known.
    """

    source: ModelSource
    blocks: tuple[Block, ...]
    serving: Serving
    latency: LatencyTable | None = None

    @property
    def outside(self) -> int:
        """Parameters that no architecture removes."""
        return self.source.family.outside(self.source.config)


@dataclass(frozen=True)
class Kind:
    """A budget.

    Args:
        cost: what counts against it.
        what: in words, for people.
        bytes: whether it is of bytes: absolute values then have units such as MB or GiB.
        milliseconds: whether it is of time, counted in nanoseconds.
        reads: settings of `Serving` that it depends on, as the command line calls them.
        caches: whether the KV cache counts, so that whole KV groups are attention's units.
        blockwise: whether it adds up only where sub-blocks are not bypassed without their block.
        exact: an architecture's cost, where what adds up is an upper bound.
    """

    cost: Callable[[Counted], Cost]
    what: str
    bytes: bool = False
    milliseconds: bool = False
    reads: Sequence[str] = ()
    caches: bool = False
    blockwise: bool = False
    exact: Callable[[Counted, Architecture], int] | None = None


def stored_as(source: ModelSource) -> str:
    """What most of a model's weights are stored in, of `STORED`; what config.json says where no files are at hand."""
    local = source.packed is None and not source.commit and any(source.path.glob("*.safetensors"))
    found = None
    if local:
        found = _OF_FILES.get(prevailing((t.dtype, t.shape) for t in stored_tensors(source.path).values()) or "")
    named = source.config.get("dtype") or source.config.get("torch_dtype")
    return found or _OF_CONFIG.get(str(named).removeprefix("torch."), "f32" if local else "bf16")


SubBlocks = Mapping[SubBlockSpec, SubBlock]
"""The matrices of sub-blocks by what a search space knows of them, whatever their quanta (`found`)."""


def sub_blocks(blocks: Sequence[Block]) -> SubBlocks:
    """Of a model."""
    return {replace(sub.spec, quantum=1): sub for block in blocks for sub in block.sub_blocks}


def found(spec: SubBlockSpec, known: SubBlocks) -> SubBlock:
    """The matrices of a sub-block."""
    return known[replace(spec, quantum=1)]


def matrices(sub: SubBlock, kept: int) -> Iterator[tuple[Projection, int, int]]:
    """Every projection with its rows and columns at `kept` units; of stacked ones those of a single matrix."""
    for matrix in sub.projections:
        gone = (sub.spec.units - kept) // (matrix.stack or 1)
        rows, columns = (sum(segment.size for segment in matrix.segments(axis)) for axis in (0, 1))
        yield matrix, matrix.rows - gone * rows, matrix.columns - gone * columns
