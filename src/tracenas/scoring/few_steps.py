"""A handful of recovery steps of one candidate, and what its loss is then. Nothing of the super-network is written."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.models.functionals.loss import next_token_nll
from tracenas.models.surgery.private import private_weights
from tracenas.models.surgery.supernet import Realisation, Supernet
from tracenas.proxies import Undefined
from tracenas.space.architecture import Architecture

__all__ = ["FewSteps", "recovered_losses"]


@dataclass(frozen=True)
class FewSteps:
    """AdamW without weight decay on the blocks' parameters, in float32.

    Args:
        steps: how many.
        learning_rate: constant.
        batch: sequences per step; the training half is gone through in order, over and over.
    """

    steps: int = 6
    learning_rate: float = 5e-4
    batch: int = 4


def recovered_losses(
    net: Supernet, arch: Architecture, how: Realisation, tokens: Tensor, settings: FewSteps, micro_batch: int
) -> tuple[float, ...]:
    """Loss of every sequence of the second half of `tokens` [N, L] after training on the first half, nats per token.

    Memory: four float32 copies of the candidate's parameters (weights, gradients, two moments).

    Raises:
        Undefined: if there are fewer than two sequences.
    """
    held = tokens.shape[0] // 2
    if not held:
        raise Undefined("two calibration sequences are needed")
    train = tokens[: tokens.shape[0] - held]
    paths = tuple(f"{block.path}." for block in net.blocks)
    with net.realise(arch, how) as model, private_weights(model) as _:
        named = [p for name, p in model.named_parameters() if name.startswith(paths)]
        optimizer = torch.optim.AdamW(named, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        for step in range(settings.steps if named else 0):
            rows = (torch.arange(settings.batch) + step * settings.batch) % len(train)
            with torch.enable_grad():
                for batch in train[rows.to(train.device)].split(micro_batch):
                    (next_token_nll(model, batch).mean() * len(batch) / settings.batch).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            parts = [
                next_token_nll(model, batch).double().mean(dim=1) for batch in tokens[len(train) :].split(micro_batch)
            ]
    return tuple(torch.cat(parts).tolist())
