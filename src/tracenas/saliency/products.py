"""Weight × gradient, summed over every unit's weights, in a streamed backward pass.

For f = mean over the calibration's sequences of a functional of each: p_j = Σ_{w in unit j} |w · ∂f/∂w|, or the sum
without absolute values. The gradient of one matrix, dyᵀx, exists while it is reduced to one number per unit, and
blocks are checkpointed: their activations are computed a second time when the backward pass reaches them.

The absolute value needs the gradient of the whole calibration. Where that fits into memory as one batch, one pass
does it. Where it does not, gradients of as many matrices as fit are summed in float32 over smaller batches, and each
such group of matrices costs one pass over the calibration: the result is the same but for rounding.

Only weights count (as published), not biases, and only rows and columns that go with a unit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tracenas.families import Block, Projection, SubBlock
from tracenas.models.ordering import Key, holder_of

__all__ = ["Functional", "mean_per_weight", "unit_products"]

Functional = Callable[[Any, Tensor], Tensor]
"""(model, input ids [B, T]) → one differentiable value per sequence, [B]."""

SHARE = 0.16
"""Of the model's bytes: what a pass may take beside the model."""

LEAST = 16 << 20
"""Bytes that a pass may take however small the model is."""

_CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}
_CHUNKS = 8
"""Temporary tensors of that size, float32, at a time."""

_ACTIVATIONS = 1.75
"""What autograd keeps of a block, over the inputs and outputs of its projections."""


def unit_products(
    model: Any,
    blocks: Sequence[Block],
    tokens: Tensor,
    micro_batch: int,
    functional: Functional,
    *,
    absolute: bool = True,
    allowance: int | None = None,
) -> dict[Key, Tensor]:
    """Σ |w · ∂f/∂w| (or Σ w · ∂f/∂w) over the weights of every unit: float64 [units] per sub-block, on the CPU.

    Args:
        model: a frozen transformers causal language model, fp32 or bf16.
        blocks: where its units live.
        tokens: int64 [N, T] on the model's device.
        micro_batch: sequences per pass at most; fewer are taken where the allowance asks for it.
        functional: f of every sequence.
        absolute: whether the absolute value of every product is summed.
        allowance: bytes beside the model; default 16 % of its own (16 MiB at least).
    """
    plan = _plan(model, blocks, tokens, micro_batch, absolute, allowance)
    totals: dict[Key, Tensor] = {}
    for group in plan.groups:
        with ExitStack() as undo:
            sinks = [_Sink.watch(model, blocks[i], (i, sub), p, plan.accumulate, absolute, undo) for i, sub, p in group]
            for block in blocks[group[0][0] :]:
                undo.enter_context(_recomputed(model.get_submodule(block.path)))
            with torch.enable_grad():
                for batch in tokens.split(plan.batch):
                    (functional(model, batch).sum() / tokens.shape[0]).backward()
            for sink in sinks:
                total = sink.finish()
                totals[sink.key] = totals[sink.key] + total if sink.key in totals else total
    return totals


def mean_per_weight(blocks: Sequence[Block], per_unit: Mapping[Key, Tensor]) -> dict[Key, float]:
    """A sub-block's importance: its units' saliency over the parameters that go with them."""
    return {
        (i, s.spec.name): float(per_unit[i, s.spec.name].sum()) / (s.spec.units * s.spec.parameters_per_unit)
        for i, block in enumerate(blocks)
        for s in block.sub_blocks
        if s.spec.units
    }


# --- what fits ------------------------------------------------------------------------------------


Matrix = tuple[int, SubBlock, Projection]
"""(block, sub-block, projection)."""


@dataclass(frozen=True)
class _Plan:
    """Sequences per batch, the matrices of every pass, and whether gradients are summed over the batches."""

    batch: int
    groups: tuple[tuple[Matrix, ...], ...]
    accumulate: bool


def _plan(
    model: Any, blocks: Sequence[Block], tokens: Tensor, micro_batch: int, absolute: bool, allowance: int | None
) -> _Plan:
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    free = max(LEAST, int(SHARE * weights)) if allowance is None else allowance
    free -= 4 * _CHUNKS * _CHUNK_ELEMENTS[tokens.device.type]
    count, length = tokens.shape
    element = next(iter(model.parameters())).element_size()
    per_sequence = length * _per_token(blocks) * element
    largest = min(count, micro_batch)
    fitting = max(1, min(largest, int(free // per_sequence)))
    present = tuple(
        (i, sub, p)
        for i, block in enumerate(blocks)
        for sub in block.sub_blocks
        for p in (sub.projections if sub.spec.units else ())
        if p.row_units or p.column_units
    )
    if fitting == count or not absolute:
        return _Plan(fitting, (present,), accumulate=False)
    batch = max(1, min(largest, int(free // 2 // per_sequence)))
    groups = _groups(present, free - int(batch * per_sequence))
    return _Plan(batch, tuple(groups), accumulate=True)


def _per_token(blocks: Sequence[Block]) -> float:
    """Values that a token leaves behind: the input of every block, and the activations of the widest one."""
    present = [[p for s in b.sub_blocks if s.spec.units for p in s.projections] for b in blocks]
    hidden = max((min(p.rows, p.columns) if p.stack else _residual(p) for ps in present for p in ps), default=1)
    widest = max(sum((p.rows + p.columns) * (p.active or 1) for p in ps) for ps in present)
    return (len(blocks) + 2) * hidden + _ACTIVATIONS * widest


def _residual(p: Projection) -> int:
    """Width of the residual stream: the side of a projection on which no units lie."""
    return p.columns if p.row_units else p.rows


def _groups(present: Sequence[Matrix], limit: int) -> Iterator[tuple[Matrix, ...]]:
    """Consecutive matrices whose float32 gradients fit the limit, one at least."""
    group: list[Matrix] = []
    taken = 0
    for matrix in present:
        size = 4 * matrix[2].rows * matrix[2].columns * (matrix[2].stack or 1)
        if group and taken + size > limit:
            yield tuple(group)
            group, taken = [], 0
        group.append(matrix)
        taken += size
    if group:
        yield tuple(group)


# --- one matrix -----------------------------------------------------------------------------------


class _Sink:
    """Takes a matrix's gradient, [rows, columns] or [stack, rows, columns], and gives its products per unit."""

    def __init__(self, key: Key, sub: SubBlock, p: Projection, weight: Tensor, accumulate: bool, absolute: bool):
        self.key, self.weight, self.absolute = key, weight.detach(), absolute
        self.axis = 0 if p.row_units else 1
        owner = torch.from_numpy(p.unit_of(self.axis, sub.spec.units)).to(weight.device)
        self._owner = torch.where(owner < 0, sub.spec.units, owner)  # fixed rows and columns fall behind the last unit
        self._total = torch.zeros(sub.spec.units + 1, dtype=torch.float64, device=weight.device)
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._gradient = torch.zeros(weight.shape, dtype=wide, device=weight.device) if accumulate else None

    @classmethod
    def watch(
        cls,
        model: Any,
        block: Block,
        place: tuple[int, SubBlock],
        p: Projection,
        accumulate: bool,
        absolute: bool,
        undo: ExitStack,
    ) -> "_Sink":
        """See the projection's gradient on every backward pass until `undo` closes."""
        index, sub = place
        module, name = holder_of(model, block, p)
        weight: Tensor = getattr(module, name)
        sink = cls((index, sub.spec.name), sub, p, weight, accumulate, absolute)
        if p.stack:
            undo.callback(weight.requires_grad_, False)
            weight.requires_grad_(True)
            undo.callback(weight.register_post_accumulate_grad_hook(sink.take).remove)
        else:
            start = torch.zeros((), device=weight.device, requires_grad=True)

            def tap(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                tapped: Tensor = _Tap.apply(output, inputs[0].detach(), start, sink.add)  # type: ignore[no-untyped-call]
                return tapped

            undo.callback(module.register_forward_hook(tap).remove)
        return sink

    def add(self, dy: Tensor, x: Tensor) -> None:
        """The gradient dyᵀx of a linear module, some rows at a time."""
        dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        rows = max(1, _CHUNK_ELEMENTS[dy.device.type] // x.shape[1])
        mixed = dy.is_cuda and dy.dtype == torch.bfloat16
        if not mixed:
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        for start in range(0, dy.shape[1], rows):
            part = slice(start, start + rows)
            left = dy[:, part].T
            product = torch.mm(left, x, out_dtype=torch.float32) if mixed else left.to(x.dtype) @ x
            if self._gradient is None:
                self._reduce(product, part)
            else:
                self._gradient[part] += product

    def take(self, weight: Tensor) -> None:
        """The gradient that autograd made of fused experts, which are multiplied inside one module."""
        assert weight.grad is not None
        if self._gradient is None:
            self._reduce_all(weight.grad)
        else:
            self._gradient += weight.grad
        weight.grad = None

    def finish(self) -> Tensor:
        """The products per unit, float64 [units], on the CPU; the gradient is given up."""
        if self._gradient is not None:
            self._reduce_all(self._gradient)
            self._gradient = None
        return self._total[:-1].cpu()

    def _reduce_all(self, gradient: Tensor) -> None:
        if gradient.dim() == 3:
            for expert in range(gradient.shape[0]):
                self._reduce(gradient[expert], slice(None), expert)
            return
        rows = max(1, _CHUNK_ELEMENTS[gradient.device.type] // gradient.shape[1])
        for start in range(0, gradient.shape[0], rows):
            part = slice(start, start + rows)
            self._reduce(gradient[part], part)

    def _reduce(self, gradient: Tensor, rows: slice, expert: int | None = None) -> None:
        weight, owner = self.weight, self._owner
        if expert is not None:
            weight, owner = weight[expert], owner[expert]
        product = weight[rows].to(torch.promote_types(weight.dtype, torch.float32)) * gradient
        if self.absolute:
            product.abs_()
        sums = product.sum(dim=1 - self.axis, dtype=torch.float64)
        self._total.index_add_(0, owner[rows] if self.axis == 0 else owner, sums)


class _Tap(torch.autograd.Function):
    """The identity; in the backward pass `see` gets the gradient and the input that was kept beside it.

    The input is kept as autograd keeps its own, so that checkpointing gives it up and computes it again.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, start: Tensor, see: Callable[[Tensor, Tensor], None]) -> Tensor:
        ctx.see = see
        ctx.save_for_backward(x)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.see(grad_outputs[0], x)
        return grad_outputs[0], None, None, None


@contextmanager
def _recomputed(module: Any) -> Iterator[None]:
    """A block that keeps its inputs only, until the context ends."""
    own = module.__dict__.get("forward")
    forward = module.forward

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    module.forward = checkpointed
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
