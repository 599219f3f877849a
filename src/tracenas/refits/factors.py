"""Factors of norms and output projections, one number each, trained through the whole candidate.

Refits aim at the dense model's hidden states, sub-block by sub-block, and know nothing of the loss. So every norm of a
candidate, and every output projection behind which no norm stands, then gives s_i times what it gave:

    s = argmin Σ_t -log p_s(y_t | y_<t),   from s = 1.

The factors in front of attention and MLP say how sharp these are, those behind them how much of what the cut sub-block
says is worth adding, the last one how sure the model is. Adam's steps, one for some hundred tokens each; blocks are
computed again in the backward pass, so that no more than one block's activations are in memory. What the factors come
to becomes part of the tensors, so that the checkpoint has no new parameter: a norm's gain g becomes s g (its bias s b;
a gain that is kept as 1 + w, as Gemma's, leaves w = s g - 1).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tracenas.families import active
from tracenas.models.functionals.loss import gradient_scale, next_token_nll
from tracenas.models.surgery.recomputed import recomputed_blocks
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.space.architecture import Architecture

__all__ = ["FactorTraining", "factor_places", "folded", "scaled_norm", "scaling", "train_factors"]


@dataclass(frozen=True)
class FactorTraining:
    """How factors are trained.

    Args:
        steps: of Adam.
        tokens: of a step, at least one window.
        rate: its learning rate, which falls to next to nothing in the second half of the steps.
    """

    steps: int
    tokens: int
    rate: float = 0.02

    def rate_of(self, step: int) -> float:
        """The learning rate of one of the steps."""
        return self.rate * min(1.0, 2 * (self.steps - step) / self.steps)


def factor_places(net: Supernet, arch: Architecture, final_norm: str) -> tuple[str, ...]:
    """Paths of the modules that have a factor: norms of sub-blocks that are there, output projections, the last norm.

    An output projection behind which a norm stands has none, nor have fused experts.

    Args:
        final_norm: path of the norm in front of the head.
    """
    places: dict[str, None] = {}
    for index, sub, _ in active(net.blocks, arch):
        within = (*sub.norms, *((sub.output,) if sub.spec.units and not sub.stacked and not sub.post_norm else ()))
        places |= dict.fromkeys(f"{net.blocks[index].path}.{path}" for path in within)
    return (*places, final_norm)


@contextmanager
def scaling(model: nn.Module, places: Sequence[str], factors: Tensor) -> Iterator[None]:
    """The modules at `places` give `factors` [places] times what they give, until the context ends."""
    with ExitStack() as undo:
        for path, factor in zip(places, factors.unbind(), strict=True):

            def scale(_: Any, __: Any, output: Tensor, factor: Tensor = factor) -> Tensor:
                wide = torch.promote_types(output.dtype, factor.dtype)  # bf16 has next to no factors near 1
                return (output.to(wide) * factor).to(output.dtype)

            undo.callback(model.get_submodule(path).register_forward_hook(scale).remove)
        yield


def train_factors(
    net: Supernet,
    arch: Architecture,
    how: Realisation | None,
    places: Sequence[str],
    windows: Tensor,
    training: FactorTraining,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """The factors after the training, float32 [places]; not finite where it diverged.

    Args:
        how: the candidate's realisation.
        windows: int64 [N, L]; steps take them in turns, again from the first where there are no more.
        report: told how many steps of how many are done.
    """
    batch = max(1, training.tokens // windows.shape[1])
    factors = torch.ones(len(places), device=net.device, requires_grad=True)
    optimizer = torch.optim.Adam([factors], lr=training.rate)
    with net.realise(arch, how) as model, recomputed_blocks(model, net.blocks, arch), torch.enable_grad():
        unit = gradient_scale(model, windows.shape[1])
        for step in range(training.steps):
            rows = windows[[(step * batch + place) % len(windows) for place in range(batch)]]
            with scaling(model, places, factors):
                loss = next_token_nll(model, rows.to(net.device)).mean()
                (gradient,) = torch.autograd.grad(loss * unit, factors)
            factors.grad = gradient / unit
            optimizer.param_groups[0]["lr"] = training.rate_of(step)
            optimizer.step()
            report(step + 1, training.steps)
    return factors.detach()


def folded(model: nn.Module, places: Sequence[str], factors: Sequence[float]) -> dict[str, Tensor]:
    """The parameters of the modules at `places` with their factors, in their dtypes, by the model's names."""
    tensors: dict[str, Tensor] = {}
    for path, factor in zip(places, factors, strict=True):
        module = model.get_submodule(path)
        if isinstance(module, nn.Linear):
            values = {
                name: (factor * value.detach().float()).to(value.dtype) for name, value in module.named_parameters()
            }
        else:
            values = scaled_norm(module, factor)
        tensors |= {f"{path}.{name}": value for name, value in values.items()}
    return tensors


def scaled_norm(norm: nn.Module, factor: float) -> dict[str, Tensor]:
    """The parameters of an RMS or layer norm whose output is `factor` times as large, in their dtypes, by name."""
    bias = getattr(norm, "bias", None)
    gain = norm.get_parameter("weight").detach()
    with torch.no_grad():
        # Of ones and minus ones the norm makes its gain, up to its epsilon; kept as 1 + w, that is 1 more than w.
        row = torch.ones_like(gain)
        row[1::2] = -1
        found = norm(row[None])[0].double() - (0 if bias is None else bias.double())
    added = torch.round((found * row - gain.double()).median())
    scaled = {"weight": (factor * (gain.double() + added) - added).to(gain.dtype)}
    return scaled if bias is None else {**scaled, "bias": (factor * bias.detach().double()).to(bias.dtype)}
