"""Writing a pruned model as a Hugging Face directory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch

from tracenas.families import Block, Family, Projection, SubBlock
from tracenas.families.description import IntArray
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.configuration import PrunedConfig, new_places, pruned_config, says_stock
from tracenas.models.checkpoints.headers import prevailing
from tracenas.models.checkpoints.shards import DTYPES, NAMES, Entry, atomic_directory, write_shards
from tracenas.models.checkpoints.stacked_configuration import with_untied_head
from tracenas.models.checkpoints.stored import as_stored, in_memory
from tracenas.models.checkpoints.written_config import is_stock, write_config, written_config
from tracenas.models.shipped.checkpoint_code import CODE_FILE, shipped_code
from tracenas.models.surgery.ordering import take
from tracenas.space.architecture import Layer

__all__ = ["Draft", "Kept", "save_pruned", "stock_shaped"]

Kept = Mapping[tuple[int, str], IntArray | None]
"""(block, sub-block name) → kept unit ids in the model, ascending, int64; None where it is bypassed."""


@dataclass(frozen=True)
class Draft:
    """A checkpoint that is written but not yet in its place."""

    path: Path
    """The temporary directory: complete but for its README.md, it can be loaded."""
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    """One per block of the model that was pruned, skipped ones included."""
    stock: bool
    """Whether transformers loads it without custom code."""
    parameters: int
    """In the files, stubs included."""
    stub_parameters: int = 0
    """Zeros in place of removed attention (`stub_attention`)."""


def save_pruned(
    model: Any,
    files: BaseFiles | None,
    family: Family,
    blocks: Sequence[Block],
    kept: Kept,
    out: Path,
    *,
    tensors: Mapping[str, Entry] | None = None,
    outputs: Mapping[tuple[int, str], torch.Tensor] | None = None,
    trained: Mapping[str, Entry] | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    stub_attention: bool = False,
    card: Callable[[Draft], str] | str = "",
) -> Draft:
    """Cut a model to the kept units and write the result; one cut tensor is in memory at a time.

    Rows and columns stay whose unit is kept or that belong to no unit, in their order. A block without units
    is left out and the blocks behind it are renumbered. The result is a stock checkpoint of the family where
    its configuration can say so (equal widths in all remaining blocks, none with one sub-block only), else
    one with `modeling_tracenas.py` beside it.

    Args:
        model: a transformers causal language model; may itself be heterogeneous (pruning again).
        files: what is taken over of the base's directory; None for nothing.
        blocks: the family's description of `model`.
        tensors: what is cut, by the model's names (`LoadedModel.tensors`: the base's files); the model's own if None.
        outputs: output projections that replace the cut ones, [rows, kept columns] (compensation).
        trained: tensors that replace the cut ones, such output projections, and any outside the blocks, by the model's
            names.
        dtype: of the written floating-point tensors; if None each has that of the tensor it was cut from, and
            config.json names the one that most weights have.
        max_shard_size: bytes, or text such as `5GB`.
        stub_attention: write one zero head where attention is removed, for software that needs attention in
            every block; logits are the same.
        card: the text of README.md, or what makes it from the draft; an error raised there leaves nothing.

    Returns:
        The draft, with `path` set to `out`.

    Raises:
        UserError: if `out` is not free or cannot be written; ValueError: for kept ids that do not fit the blocks.
    """
    layers = _layers(blocks, kept)
    dense = {name: (tensors or {}).get(name, entry) for name, entry in in_memory(model).items()}
    replaced = {**_replaced(blocks, outputs or {}), **(trained or {})}
    entries = list(_entries(dense, blocks, layers, kept, replaced, dtype))
    base = with_untied_head(model)
    shapes = {entry.name: entry.shape for entry in entries}
    pruned = pruned_config(base, family, blocks, layers, shapes, kept=kept, stub_attention=stub_attention)
    config, entries = _as_written(pruned, entries, family, files.config if files is not None else {}, base)
    with atomic_directory(out) as directory:
        _write_beside(files, family, config, directory)
        write_shards(directory, entries, max_shard_size)
        count = sum(prod(e.shape) for e in entries if e.dtype.is_floating_point)
        draft = Draft(directory, config, layers, pruned.stock, count, sum(map(prod, pruned.zeros.values())))
        if readme := card if isinstance(card, str) else card(draft):
            (directory / "README.md").write_text(readme, encoding="utf-8")
    return replace(draft, path=out)


def stock_shaped(model: Any, family: Family, blocks: Sequence[Block], kept: Kept) -> bool:
    """Whether `save_pruned` would write these units as a stock checkpoint; no weight is read.

    Args:
        model, family, blocks, kept: as `save_pruned` takes them.
    """
    layers = _layers(blocks, kept)
    shapes = {e.name: e.shape for e in _entries(in_memory(model), blocks, layers, kept, {}, None)}
    return says_stock(with_untied_head(model), family, blocks, layers, shapes, kept)


def _layers(blocks: Sequence[Block], kept: Kept) -> tuple[Layer, ...]:
    return tuple(_layer(block, index, kept) for index, block in enumerate(blocks))


def _as_written(
    pruned: PrunedConfig, entries: list[Entry], family: Family, disk: Mapping[str, Any], base: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Entry]]:
    """config.json with the weights' type, and the tensors as files hold them, those of stubs included."""
    dtype = _main_dtype(entries)
    config = {**pruned.config, "dtype": str(dtype).removeprefix("torch.")}
    zeros = (
        Entry(name, shape, dtype, partial(torch.zeros, shape, dtype=dtype)) for name, shape in pruned.zeros.items()
    )
    entries = [*entries, *zeros]
    if not pruned.stock:
        return config, entries
    config = written_config(config, family, disk, base)
    return config, as_stored(config, entries)


def _write_beside(files: BaseFiles | None, family: Family, config: Mapping[str, Any], directory: Path) -> None:
    """Everything but the weights and the card."""
    write_config(directory, config)
    if not is_stock(config):
        code = shipped_code(family.model_type)
        (directory / CODE_FILE).write_text(code, encoding="utf-8")
    if files is not None:
        files.copy(directory, stock=is_stock(config))


def _layer(block: Block, index: int, kept: Kept) -> Layer:
    """Counts of one block, after checking its ids."""
    counts = []
    for sub in block.sub_blocks:
        ids = kept.get((index, sub.spec.name))
        counts.append((sub.spec.unit, 0 if ids is None else len(ids)))
        if ids is None:
            continue
        if not len(ids) or ids[0] < 0 or ids[-1] >= sub.spec.units or (ids[1:] <= ids[:-1]).any():
            where = f"block {index}, {sub.spec.name}"
            raise ValueError(f"{where}: ids must be some of 0…{sub.spec.units - 1}, ascending, found {ids}")
    return Layer(tuple(counts), block.stack)


# --- tensors --------------------------------------------------------------------------------------


def _main_dtype(entries: Sequence[Entry]) -> torch.dtype:
    """The floating-point type that most weights have."""
    main = prevailing((NAMES[entry.dtype], entry.shape) for entry in entries)
    return DTYPES[main] if main is not None else torch.float32


def _replaced(blocks: Sequence[Block], outputs: Mapping[tuple[int, str], torch.Tensor]) -> dict[str, Entry]:
    """Output projections by the model's names."""
    names = {
        f"{block.path}.{sub.output}.weight": outputs[index, sub.spec.name]
        for index, block in enumerate(blocks)
        for sub in block.sub_blocks
        if (index, sub.spec.name) in outputs
    }
    return {name: Entry(name, tuple(weight.shape), weight.dtype, weight.detach) for name, weight in names.items()}


def _entries(
    dense: Mapping[str, Entry],
    blocks: Sequence[Block],
    layers: Sequence[Layer],
    kept: Kept,
    replaced: Mapping[str, Entry],
    dtype: torch.dtype | None,
) -> Iterator[Entry]:
    """What is to be written, in the model's order; tied tensors once, under the first of their names."""
    places = new_places(blocks, layers)
    tables = {s.position_bias.table + ".weight" for b in blocks for s in b.sub_blocks if s.position_bias is not None}
    for name, entry in dense.items():
        index = next((i for i, block in enumerate(blocks) if name.startswith(f"{block.path}.")), None)
        if (given := replaced.get(name)) is not None:
            entry = replace(entry, shape=given.shape, make=given.make)
        if index is None or name in tables:  # a table stays in the first block, whichever that is
            yield _cut(entry, name, None, None, dtype)
            continue
        block, place = blocks[index], places[index]
        inner = name.removeprefix(block.path + ".")
        sub = next((s for s in block.sub_blocks if _belongs(inner, s)), None)
        ids = kept.get((index, sub.spec.name)) if sub is not None else None
        if place is None or (sub is not None and ids is None):
            continue
        rows = columns = None
        if sub is not None and ids is not None:
            path, _, kind = inner.rpartition(".")
            parts = (*sub.projections, *sub.width_norms)
            projection = next((p for p in parts if p.path == (inner if p.stack else path)), None)
            if projection is not None and given is None:
                rows = _selected(projection, 0, sub.spec.units, ids)
                columns = _selected(projection, 1, sub.spec.units, ids) if kind != "bias" else None
        yield _cut(entry, f"{place}.{inner}", rows, columns, dtype)


def _belongs(inner: str, sub: SubBlock) -> bool:
    """Whether a tensor, named from the block on, goes with this sub-block."""
    paths = (sub.module, *sub.norms, *(p.path for p in sub.projections))
    return any(inner.startswith(path + ".") for path in paths)


def _selected(projection: Projection, axis: int, units: int, ids: IntArray) -> torch.Tensor | None:
    """Indices of the rows (0) or columns (1) that stay, [k] or [stack, k]; None if all do."""
    if not projection.segments(axis):
        return None
    unit_ids = projection.unit_ids(axis, units)
    kept = torch.zeros(units + 1, dtype=torch.bool)
    kept[torch.from_numpy(ids)] = True
    kept[-1] = True  # unit -1: fixed
    left = kept[torch.from_numpy(unit_ids)]
    return left.nonzero()[:, -1].reshape(*left.shape[:-1], -1)


def _cut(
    entry: Entry, name: str, rows: torch.Tensor | None, columns: torch.Tensor | None, dtype: torch.dtype | None
) -> Entry:
    shape = list(entry.shape)
    for axis, index in enumerate((rows, columns)):
        if index is not None:
            shape[axis + max(0, len(shape) - 2)] = index.shape[-1]
    target = dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype

    def make() -> torch.Tensor:
        cut = entry.make()
        for axis, index in enumerate((rows, columns)):
            if index is not None:
                cut = take(cut, axis, index.to(cut.device))
        return cut.to(target)

    return Entry(name, tuple(shape), target, make)
