"""Block-local reconstruction: all tensors of a pruned block are trained to give what the dense block gives.

Block after block, on the stream X' that the blocks before it give as trained so far, AdamW on

    min over the block's tensors of E_t ‖f(X')_t - T_t‖² / ‖Y_t‖²,    T = Y - (1 - d)(X - X'),

with X and Y the dense stream in front of the dense block and behind it, and d the share of the drift X - X' that the
block is to take up: T is the dense stream with d = 1, and the pruned one plus what the dense block adds with d = 0. A
token counts relative to its length, as the norms of the blocks behind see it. No gradient goes from one block to
another, so that one block's optimizer and the hidden states of the text are all that is in memory.

Whether a trained block stays is decided on text that it is not trained on: only where the same error is smaller there.
Shapes: B sequences of T tokens, D hidden.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from tracenas.errors import UserError
from tracenas.models.surgery.replacing import replace_parameters
from tracenas.models.surgery.stepping import BlockRunner
from tracenas.models.surgery.streaming import on_device
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.refits.replaced import ReplacedRealisation
from tracenas.space.architecture import Architecture

__all__ = [
    "BlockTraining",
    "InMemory",
    "KeptBlocks",
    "TrainedBlock",
    "learning_rates",
    "reconstruct_blocks",
    "relative_error",
]

_STREAM = 0x424C4B
"""Tells the generators of the blocks' orders from others of the same seed."""


@dataclass(frozen=True)
class BlockTraining:
    """How a block is trained.

    Args:
        steps: of the optimizer, per block.
        learning_rate: the peak.
        seed: of the order of the text.
        drift: d, the share of the drift that targets take up.
        warmup, decay: shares of the steps in which the learning rate rises and falls, linearly.
        clip: largest norm of a block's gradient.
    """

    steps: int
    learning_rate: float
    seed: int
    drift: float = 1.0
    warmup: float = 0.05
    decay: float = 0.30
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0


@dataclass(frozen=True)
class TrainedBlock:
    """What became of one block.

    Args:
        index: of the block.
        steps: that it was trained for; 0 where there was nothing to learn.
        before, after: relative error on held-out text; not finite where the training diverged.
        kept: whether it stays as trained.
        tensors: of a block that stays as trained, by their names in it, in the super-network's order of units.
    """

    index: int
    steps: int
    before: float
    after: float
    kept: bool
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors."""
        after = self.after if math.isfinite(self.after) else None
        return {"block": self.index, "steps": self.steps, "before": self.before, "after": after, "kept": self.kept}


class KeptBlocks(Protocol):
    """Where finished blocks are kept."""

    def get(self, index: int) -> TrainedBlock | None:
        """The block, if it is finished."""
        ...

    def put(self, block: TrainedBlock) -> TrainedBlock:
        """Keep a finished block; what it is from now on."""
        ...


class InMemory(dict[int, TrainedBlock]):
    """Finished blocks that are kept in memory."""

    def put(self, block: TrainedBlock) -> TrainedBlock:
        """Keep it."""
        self[block.index] = block
        return block


def reconstruct_blocks(
    net: Supernet,
    arch: Architecture,
    start: Realisation,
    tokens: Tensor,
    held_out: Tensor,
    batch: int,
    training: BlockTraining,
    *,
    stored: Mapping[str, torch.dtype] | None = None,
    finished: KeptBlocks | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[int, TrainedBlock]:
    """Train every block of a candidate that is not skipped, in forward order.

    Memory: the hidden states of all tokens three times in the model's dtype, and one block's tensors, gradients and
    moments in float32 (float64 for a float64 model). Trained tensors are rounded to the model's dtype, and before that
    to the stored one, before they are tried and handed on.

    Args:
        net: the super-network.
        arch: the candidate.
        start: what the blocks are trained from.
        tokens: to train on, int64 [N, T].
        held_out: to decide on, int64 [M, T].
        batch: sequences of a step, and of any pass.
        stored: dtypes of the model's tensors in the checkpoint, by name; None: the model's own.
        finished: blocks that were trained before, and where those that are trained now are kept.
        report: told how many steps of how many are done.

    Raises:
        UserError: if an activation is not finite.
    """
    blocks: KeptBlocks = InMemory() if finished is None else finished
    runner = BlockRunner(net.model, net.blocks)
    streams = _Streams.of(runner, tokens, batch), _Streams.of(runner, held_out, batch)
    out: dict[int, TrainedBlock] = {}
    total = training.steps * len(arch.layers)
    for index, layer in enumerate(arch.layers):

        def tell(step: int, first: int = index * training.steps) -> None:
            report(first + step, total)

        tell(0)
        for stream in streams:
            stream.advance_dense(runner, index)
        if layer.skip:
            continue
        block = blocks.get(index)
        if block is None:
            with net.realise_block(index, layer, start):
                work = _Work(runner, index, *streams, training)
                block = blocks.put(work.trained(dict(_within(net, index, stored or {})), tell))
        out[index] = block
        with net.realise_block(index, layer, ReplacedRealisation(start, {index: block.tensors})):
            for stream in streams:
                stream.pruned = [runner(index, hidden) for hidden in stream.pruned]
    report(total, total)
    return out


def _within(net: Supernet, index: int, stored: Mapping[str, torch.dtype]) -> Iterator[tuple[str, torch.dtype]]:
    """The part of a mapping by the model's names that is of one block, by the names in the block."""
    prefix = f"{net.blocks[index].path}."
    return ((name.removeprefix(prefix), value) for name, value in stored.items() if name.startswith(prefix))


@dataclass
class _Streams:
    """Hidden states of a text, a tensor [B, T, D] per batch.

    Args:
        before, dense: of the dense model, in front of a block and behind it.
        pruned: of the candidate, in front of the block.
    """

    before: list[Tensor]
    dense: list[Tensor]
    pruned: list[Tensor]

    @classmethod
    def of(cls, runner: BlockRunner, tokens: Tensor, batch: int) -> "_Streams":
        """In front of the first block."""
        dense = [on_device(runner.model, hidden) for hidden in runner.embed(tokens, batch)]
        return cls(dense, dense, list(dense))

    def advance_dense(self, runner: BlockRunner, index: int) -> None:
        """The dense stream over one block."""
        self.before = self.dense
        self.dense = [runner(index, hidden) for hidden in self.before]

    def target(self, place: int, drift: float) -> Tensor:
        """T of one batch, in float32 at least."""
        before, dense, pruned = (s[place].to(_wide(s[place].dtype)) for s in (self.before, self.dense, self.pruned))
        return dense - (1 - drift) * (before - pruned)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What is trained and summed in."""
    return torch.promote_types(dtype, torch.float32)


def relative_error(output: Tensor, target: Tensor, dense: Tensor) -> Tensor:
    """Mean over tokens of ‖output - target‖² / ‖dense‖², [] in float32 at least; tensors are [B, T, D]."""
    wide = _wide(output.dtype)
    length = dense.to(wide).square().sum(-1)
    return ((output.to(wide) - target.to(wide)).square().sum(-1) / length.clamp_min(torch.finfo(wide).tiny)).mean()


def learning_rates(training: BlockTraining) -> list[float]:
    """Of every step: linearly up to the peak, there, and linearly down to next to nothing; never 0."""
    steps = training.steps
    rising, falling = max(1, round(training.warmup * steps)), max(1, round(training.decay * steps))
    return [training.learning_rate * min(1.0, (step + 1) / rising, (steps - step) / falling) for step in range(steps)]


@dataclass(frozen=True)
class _Work:
    """One realised block and the text around it."""

    runner: BlockRunner
    index: int
    text: _Streams
    held_out: _Streams
    training: BlockTraining

    @property
    def module(self) -> nn.Module:
        """The block."""
        path = self.runner.blocks[self.index].path
        module: nn.Module = self.runner.model.get_submodule(path)
        return module

    def trained(self, stored: Mapping[str, torch.dtype], report: Callable[[int], None]) -> TrainedBlock:
        """The block after its training, if that was of use."""
        before = self._held_out_error()
        if not math.isfinite(before):
            raise UserError(f"block {self.index}: the activations are not finite; try dtype=fp32")
        if before == 0:
            return TrainedBlock(self.index, 0, 0.0, 0.0, kept=False)
        dtypes = {name: parameter.dtype for name, parameter in self.module.named_parameters()}
        steps, masters = self._train(report)
        tensors = {name: tensor.to(stored.get(name, dtypes[name])).to(dtypes[name]) for name, tensor in masters.items()}
        with ExitStack() as undo:
            replace_parameters(self.module, tensors, undo)
            after = self._held_out_error() if steps == self.training.steps else math.inf
        kept = after < before
        return TrainedBlock(self.index, steps, before, after, kept, tensors if kept else {})

    def _held_out_error(self) -> float:
        """Of the block as it is, on the held-out text."""
        streams, drift = self.held_out, self.training.drift
        total = weight = 0.0
        for place, hidden in enumerate(streams.pruned):
            error = relative_error(self.runner(self.index, hidden), streams.target(place, drift), streams.dense[place])
            total += float(error) * hidden.shape[0]
            weight += hidden.shape[0]
        return total / weight

    def _train(self, report: Callable[[int], None]) -> tuple[int, dict[str, Tensor]]:
        """Steps that were made, fewer than wanted where the loss was no longer finite, and the tensors after them."""
        training, streams = self.training, self.text
        wide = _wide(streams.pruned[0].dtype)
        parameters = {
            name: nn.Parameter(parameter.detach().to(wide, copy=True), requires_grad=True)
            for name, parameter in self.module.named_parameters()
        }
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=training.learning_rate, betas=training.betas, weight_decay=0.0
        )
        order = islice(_orders(len(streams.pruned), (training.seed, _STREAM, self.index)), training.steps)
        done = 0
        with ExitStack() as undo, torch.enable_grad():
            replace_parameters(self.module, parameters, undo)
            for place, rate in zip(order, learning_rates(training), strict=True):
                optimizer.param_groups[0]["lr"] = rate
                optimizer.zero_grad(set_to_none=True)
                loss = relative_error(self._forward(place), streams.target(place, training.drift), streams.dense[place])
                if not math.isfinite(float(loss.detach())):
                    break
                loss.backward()
                nn.utils.clip_grad_norm_(parameters.values(), training.clip)
                optimizer.step()
                done += 1
                report(done)
        return done, {name: parameter.detach() for name, parameter in parameters.items()}

    def _forward(self, place: int) -> Tensor:
        """The block on one batch, differentiable; a model of two bytes is trained by products in bf16."""
        hidden = self.text.pruned[place]
        half = hidden.dtype.itemsize == 2
        with torch.autocast(hidden.device.type, torch.bfloat16) if half else nullcontext():
            return self.runner.differentiable(self.index, hidden.to(_wide(hidden.dtype)))


def _orders(count: int, seed: Sequence[int]) -> Iterator[int]:
    """0 … count - 1 in one random order after another."""
    rng = np.random.default_rng(list(seed))
    while True:
        yield from rng.permutation(count).tolist()
