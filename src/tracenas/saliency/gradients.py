"""Gradient statistics of the dense model, per weight, streamed to a safetensors file block by block.

Per sequence n of the calibration: g_n = ∂L_n/∂W, L_n its mean next-token loss. Kept are mean |g_n|
(`gradient`: Pruner-Zero's G) and √mean g_n² (`gradient_rms`: GBLM's). No more blocks are in memory at a time than
fit the buffer: each such group of blocks costs one pass over the calibration.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tracenas.errors import UserError, first_line
from tracenas.families import Block
from tracenas.models.checkpoints.shards import Entry, write_tensors
from tracenas.models.functionals.loss import gradient_scale, next_token_nll
from tracenas.models.surgery.gradients import watch_output_gradient
from tracenas.rundir import atomic_path
from tracenas.saliency.linear import linear_module, projections

__all__ = ["BUFFER_BYTES", "KINDS", "GradientStore", "write_gradients"]

KINDS = ("gradient", "gradient_rms")

BUFFER_BYTES = 1 << 30
"""Accumulators in memory; a single block may exceed it."""


class GradientStore:
    """Reads what `write_gradients` wrote, one tensor at a time.

    Raises:
        UserError: if the file is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(str(path), "pt") as file:
                self._names = frozenset(file.keys())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: no file of gradients ({first_line(error)})") from error

    def get(self, block: int, projection: str, kind: str) -> Tensor:
        """Float32 [rows, columns] on the CPU.

        Raises:
            UserError: if the file was made for another model or metric.
        """
        name = f"{block}.{projection}.{kind}"
        if name not in self._names:
            raise UserError(f"{self.path}: no '{name}' in it: made for another model or metric")
        with safe_open(str(self.path), "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor


def write_gradients(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    path: Path,
    *,
    kinds: Sequence[str] = KINDS,
    micro_batch: int = 1,
    buffer_bytes: int = BUFFER_BYTES,
    report: Callable[[int, int], None] | None = None,
) -> GradientStore:
    """Measure and write the gradients of every linear layer, atomically.

    Args:
        tokens: int64 [N, L] on the model's device.
        kinds: some of `KINDS`.
        micro_batch: sequences per pass; the result does not depend on it but for rounding.
        buffer_bytes: how much accumulators may take at a time.
        report: told after each group how many blocks of how many are done.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for index, _, p in projections(blocks):
        weight = linear_module(model, blocks[index], p).weight
        shapes |= {f"{index}.{p.path}.{kind}": (weight.shape[0], weight.shape[1]) for kind in kinds}

    def values() -> Iterator[Tensor]:
        done = 0
        for group in _groups(model, blocks, len(kinds), buffer_bytes):
            sums = _accumulate(model, blocks, group, tokens, kinds, micro_batch)
            for name in (n for n in shapes if n in sums):
                mean = sums.pop(name).div_(tokens.shape[0])
                yield mean.sqrt_() if name.endswith(".gradient_rms") else mean
            done += len(group)
            if report is not None:
                report(done, len(blocks))

    stream = values()
    entries = [Entry(name, shape, torch.float32, partial(next, stream)) for name, shape in shapes.items()]
    with atomic_path(path) as temporary:
        write_tensors(temporary, entries)
    next(stream, None)  # the last group is done
    return GradientStore(path)


def _groups(model: Any, blocks: Sequence[Block], kinds: int, limit: int) -> Iterator[list[int]]:
    """Consecutive blocks whose accumulators fit the limit, one block at least."""
    size = [0] * len(blocks)
    for index, _, p in projections(blocks):
        size[index] += 4 * kinds * linear_module(model, blocks[index], p).weight.numel()
    group: list[int] = []
    for index in range(len(blocks)):
        if group and sum(size[i] for i in group) + size[index] > limit:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _accumulate(
    model: Any, blocks: Sequence[Block], group: Sequence[int], tokens: Tensor, kinds: Sequence[str], micro_batch: int
) -> dict[str, Tensor]:
    """Sums over the sequences of |g| and g² for the blocks of a group."""
    sums: dict[str, Tensor] = {}
    scale = gradient_scale(model, tokens.shape[1])
    with ExitStack() as watching:
        for index, _, p in projections(blocks):
            if index not in group:
                continue
            module = linear_module(model, blocks[index], p)
            local = {kind: torch.zeros(module.weight.shape, device=module.weight.device) for kind in kinds}
            sums |= {f"{index}.{p.path}.{kind}": value for kind, value in local.items()}
            watching.enter_context(watch_output_gradient(module, partial(_adder, local, scale)))
        with torch.enable_grad():
            for batch in tokens.split(micro_batch):
                loss = next_token_nll(model, batch).mean(dim=1).sum()
                (loss * scale).backward()
    return sums


def _adder(sums: dict[str, Tensor], scale: float, x: Tensor) -> Callable[[Tensor], None]:
    """Adds every sequence's weight gradient dyᵀx, which exists for one sequence and layer at a time."""

    def add(dy: Tensor) -> None:
        for x_one, dy_one in zip(x.detach(), dy, strict=True):
            gradient = (dy_one.float() / scale).T @ x_one.float()
            if "gradient" in sums:
                sums["gradient"] += gradient.abs()
            if "gradient_rms" in sums:
                sums["gradient_rms"] += gradient.square()

    return add
