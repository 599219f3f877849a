"""Gradients seen on their way through a frozen model's backward passes, without one being kept."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

__all__ = ["watch_output_gradient", "watch_weight_gradient"]


def watch_output_gradient(module: nn.Module, enter: Callable[[Tensor], Callable[[Tensor], None]]) -> RemovableHandle:
    """On every pass of a linear module call `enter(input)`; what it returns is called with the output's gradient.

    The first such module of a frozen model is where the backward pass ends.
    """

    def forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        see = enter(inputs[0])
        if not output.requires_grad:
            output.requires_grad_(True)
        output.register_hook(see)

    return module.register_forward_hook(forward)


def watch_weight_gradient(weight: Tensor, see: Callable[[Tensor], Any], undo: ExitStack) -> None:
    """Call `see` with the gradient that autograd makes of a weight, and give it up, until the stack closes.

    For the fused matrices of experts, which are multiplied inside one module.
    """

    def take(parameter: Tensor) -> None:
        assert parameter.grad is not None
        see(parameter.grad)
        parameter.grad = None

    undo.callback(weight.requires_grad_, False)
    weight.requires_grad_(True)
    undo.enter_context(weight.register_post_accumulate_grad_hook(take))
