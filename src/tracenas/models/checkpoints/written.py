"""Whether a written checkpoint is the candidate that was realised in memory: tensor by tensor, bit for bit."""

from collections.abc import Iterator

import torch
from torch import Tensor

from tracenas.errors import CheckFailed
from tracenas.families import Projection, SubBlock, parameter_parts, within
from tracenas.models.checkpoints.configuration import empty_model, named_tensors, new_places
from tracenas.models.checkpoints.headers import stored_tensors
from tracenas.models.checkpoints.stored import as_loaded
from tracenas.models.checkpoints.writing import Draft
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.space.architecture import Architecture

__all__ = ["check_written"]

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_written(
    net: Supernet, arch: Architecture, realisation: Realisation | None, draft: Draft, dtype: torch.dtype | None = None
) -> None:
    """Compare every tensor in a draft's files with the realised candidate's, put back into the base's order.

    Where file and memory have different types, the one of more digits is rounded to the other's. Tensors that the
    candidate does not have may be there as zeros in place of removed attention.

    Args:
        dtype: what the weights were asked to be written in. Where neither memory's type nor this one holds all the
            numbers of the other (and the files that were cut have more digits), both roundings are allowed for.

    Raises:
        CheckFailed: naming the first tensor that is missing, too many or different.
    """
    written = as_loaded(empty_model(draft.config), stored_tensors(draft.path))
    for name, expected in _realised(net, arch, realisation):
        entry = written.pop(name, None)
        if entry is None:
            raise CheckFailed(f"the checkpoint lacks the scored candidate's {name}; nothing was written")
        if not _same(entry.make(), expected.detach().cpu(), dtype):
            raise CheckFailed(f"{name} of the checkpoint is not the scored candidate's; nothing was written")
    stubs = draft.stub_parameters
    for name, entry in written.items():
        stubs -= torch.Size(entry.shape).numel()
        if stubs < 0 or bool(entry.make().any()):
            raise CheckFailed(f"the checkpoint has {name}, the scored candidate does not; nothing was written")


def _realised(net: Supernet, arch: Architecture, how: Realisation | None) -> Iterator[tuple[str, Tensor]]:
    """The candidate's tensors, by their names in the pruned model."""
    parts = {
        f"{block.path}.{name}": (index, *part)
        for index, block in enumerate(net.blocks)
        for name, part in parameter_parts(block).items()
    }
    places = {
        f"{block.path}.": place
        for block, place in zip(net.blocks, new_places(net.blocks, arch.layers), strict=True)
        if place is not None
    }
    biases = (s.position_bias for block in net.blocks for s in block.sub_blocks if s.position_bias is not None)
    tables = {f"{bias.table}.weight": net.model.get_submodule(bias.table).weight for bias in biases if bias.table}
    yield from tables.items()  # whole in the first block, also where that has no attention left
    how = how or Realisation()
    of_blocks = tuple(f"{block.path}." for block in net.blocks)
    with net.realise_outside(how) as model:
        for name, tensor in named_tensors(model):
            if not name.startswith(of_blocks) and name not in tables:
                yield name, tensor
    for index, path in enumerate(of_blocks):
        if path not in places:
            continue
        with net.realise_block(index, arch.layers[index], how):
            for name, tensor in named_tensors(net.model):
                if name.startswith(path) and name not in tables:
                    whole = _in_base_order(net, arch, tensor, *parts[name]) if name in parts else tensor
                    yield f"{places[path]}.{name.removeprefix(path)}", whole


def _in_base_order(
    net: Supernet, arch: Architecture, tensor: Tensor, index: int, sub: SubBlock, projection: Projection
) -> Tensor:
    kept = next(kept for other, kept in within(net.blocks[index], arch.layers[index]) if other is sub)
    return net.in_base_order((index, sub.spec.name), sub, projection, kept, tensor)


def _same(written: Tensor, expected: Tensor, dtype: torch.dtype | None) -> bool:
    if written.shape != expected.shape:
        return False
    if _equal_bits(written.to(expected.dtype), expected) or _equal_bits(written, expected.to(written.dtype)):
        return True
    if dtype is None or dtype == expected.dtype:
        return False
    relative = (torch.finfo(written.dtype).eps + torch.finfo(expected.dtype).eps) * 0.51
    smallest = torch.finfo(written.dtype).smallest_normal + torch.finfo(expected.dtype).smallest_normal
    return torch.allclose(written.double(), expected.double(), rtol=relative, atol=smallest)


def _equal_bits(a: Tensor, b: Tensor) -> bool:
    integer = _INTEGERS[a.dtype.itemsize]
    return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
