"""Where the gradient of one matrix ends: multiplied by the weights and summed unit by unit.

The gradient dyᵀx exists while it is reduced to one number per unit, some rows at a time; or it is summed in float32
over several batches first, where the absolute value needs the gradient of the whole calibration.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Projection, SubBlock
from tracenas.models.surgery.gradients import watch_weight_gradient
from tracenas.models.surgery.ordering import weight_holder

__all__ = ["CHUNK_ELEMENTS", "Sink"]

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Numbers of a temporary tensor."""


class Sink:
    """Takes a matrix's gradient, [rows, columns] or [stack, rows, columns], and gives its products per unit.

    It sees the projection's gradient on every backward pass until `undo` closes.

    Args:
        place: block and sub-block.
        accumulate: whether gradients are summed before they are reduced.
        absolute: whether products count by their absolute values.
    """

    def __init__(
        self,
        model: Any,
        block: Block,
        place: tuple[int, SubBlock],
        p: Projection,
        accumulate: bool,
        absolute: bool,
        undo: ExitStack,
    ) -> None:
        index, sub = place
        module, name = weight_holder(model, block, p)
        weight: Tensor = getattr(module, name)
        self.key, self.weight, self.absolute = (index, sub.spec.name), weight.detach(), absolute
        self.axis = 0 if p.row_units else 1
        owner = torch.from_numpy(p.unit_ids(self.axis, sub.spec.units)).to(weight.device)
        self._owner = torch.where(owner < 0, sub.spec.units, owner)  # fixed rows and columns fall behind the last unit
        self._total = torch.zeros(sub.spec.units + 1, dtype=torch.float64, device=weight.device)
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._gradient = torch.zeros(weight.shape, dtype=wide, device=weight.device) if accumulate else None
        if p.stack:
            watch_weight_gradient(weight, self.take, undo)
        else:
            start = torch.zeros((), device=weight.device, requires_grad=True)

            def tap(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                tapped: Tensor = _Tap.apply(output, inputs[0].detach(), start, self.add)  # type: ignore[no-untyped-call]
                return tapped

            undo.enter_context(module.register_forward_hook(tap))

    def add(self, dy: Tensor, x: Tensor) -> None:
        """The gradient dyᵀx of a linear module, some rows at a time."""
        dy, x = dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1])
        rows = max(1, CHUNK_ELEMENTS[dy.device.type] // x.shape[1])
        mixed = dy.is_cuda and dy.dtype in (torch.bfloat16, torch.float16)
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

    def take(self, gradient: Tensor) -> None:
        """The gradient that autograd made of fused experts, which are multiplied inside one module."""
        if self._gradient is None:
            self._reduce_all(gradient)
        else:
            self._gradient += gradient

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
        rows = max(1, CHUNK_ELEMENTS[gradient.device.type] // gradient.shape[1])
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
