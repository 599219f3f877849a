"""Perplexity on held-out text, in fixed windows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tracenas.models.functionals.loss import next_token_nll, predicted_tokens

__all__ = ["Perplexity", "perplexity", "window_losses"]


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood over all predicted tokens.

    Args:
        nll: mean, nats per token.
        tokens: predicted tokens: L - 1 of every window of L (of an encoder–decoder model: those of the second half).
        windows: how many windows of how many tokens.
    """

    nll: float
    tokens: int
    windows: tuple[int, int]

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


def perplexity(
    model: Any,
    windows: Tensor,
    micro_batch: int,
    *,
    shard: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Mean -log p(x_t | x_<t) within every window; the first token of a window is context only.

    Args:
        model: a language model; an encoder–decoder reads the first half of a window and predicts the second.
        windows: token ids, int64 [N, L], on any device; the same in every process.
        micro_batch: windows per forward pass.
        shard: whether the windows are shared out over the processes of torch.distributed, all of which must
            call this; every process gets the whole result.
        report: told after each pass how many windows of how many this process is done with.
    """
    device = next(iter(model.parameters())).device
    total, done = torch.zeros((), dtype=torch.float64), 0
    share = windows
    if shard:
        share = windows[torch.distributed.get_rank() :: torch.distributed.get_world_size()]
    with torch.no_grad():
        for batch in share.split(micro_batch) if len(share) else ():
            total += next_token_nll(model, batch.to(device)).sum(dtype=torch.float64).cpu()
            done += len(batch)
            if report is not None:
                report(done, len(share))
    if shard:
        total = total.to(device)
        torch.distributed.all_reduce(total)
    count, length = windows.shape
    scored = count * predicted_tokens(model, length)
    return Perplexity(float(total) / scored, scored, (count, length))


def window_losses(
    model: Any, windows: Tensor, micro_batch: int = 1, *, report: Callable[[int, int], None] | None = None
) -> Tensor:
    """Mean loss of every window, nats per token, float64 [N] on the host; arguments as `perplexity`'s."""
    device = next(iter(model.parameters())).device
    losses: list[Tensor] = []
    with torch.no_grad():
        for batch in windows.split(micro_batch):
            losses.append(next_token_nll(model, batch.to(device)).double().mean(dim=1).cpu())
            if report is not None:
                report(sum(map(len, losses)), len(windows))
    return torch.cat(losses)
