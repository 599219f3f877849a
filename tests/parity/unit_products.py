"""What saliencies are compared with: products of weights and gradients from plain autograd, summed unit by unit."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["absolute", "assert_equal_units", "products", "signed"]


def products(model: Any, functional: Callable[[], Tensor]) -> dict[str, Tensor]:
    """w · ∂f/∂w of every matrix, float64, from one ordinary backward pass over everything."""
    weights = {name: p.requires_grad_(True) for name, p in model.named_parameters() if p.dim() > 1}
    gradients = torch.autograd.grad(functional(), list(weights.values()), allow_unused=True)
    model.requires_grad_(False)
    return {n: (w * g).detach().double() for (n, w), g in zip(weights.items(), gradients, strict=True) if g is not None}


def absolute(own: list[Tensor]) -> Tensor:
    """Σ |x| over a unit's slices."""
    return torch.stack([x.abs().sum() for x in own]).sum()


def signed(own: list[Tensor]) -> Tensor:
    """|Σ x| over a unit's slices."""
    return torch.stack([x.sum() for x in own]).sum().abs()


def assert_equal_units(
    per_unit: Mapping[Any, Tensor], expected: Mapping[Any, Tensor], of: Callable[[list[Tensor]], Tensor]
) -> None:
    """Signed sums may cancel: they are as exact as the largest one."""
    for key, value in per_unit.items():
        scale = float(expected[key].max())
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-5 * scale if of is signed else 0)
