"""A short recovery of a model in memory: plain AdamW, a few dozen steps, nothing written. For hundreds of candidates.

The learning rate warms up linearly over a share of the steps to the first mark and is constant afterwards, without a
decay: so a run of 10R steps passes through exactly the model that a run of R steps ends with.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tracenas.models.functionals.loss import hidden_states, predicting

__all__ = ["ShortSettings", "next_token_loss", "short_recovery", "warmed_batches"]


@dataclass(frozen=True)
class ShortSettings:
    """How a short recovery trains.

    Args:
        learning_rate: after the warmup.
        warmup: share of the steps to the first mark.
        weight_decay: of matrices; vectors (norms, biases) have none.
        clip: largest norm of the gradient; 0 for no clipping.
        micro_batch: sequences per forward pass.
    """

    learning_rate: float = 3e-4
    warmup: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    micro_batch: int = 8


def next_token_loss(model: Any, input_ids: Tensor) -> Tensor:
    """Mean next-token loss in nats; differentiable in every weight, the head's and tied embeddings' among them.

    Args:
        input_ids: int64 [B, L]; every row is one sequence.
    """
    hidden = predicting(model, hidden_states(model, input_ids))
    logits = functional.linear(hidden, model.get_output_embeddings().weight).float()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    labels = input_ids[:, -logits.shape[1] :]
    return functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))


def short_recovery(
    model: Any,
    parameters: Sequence[nn.Parameter],
    batches: Iterable[Tensor],
    marks: Sequence[int],
    measure: Callable[[], float],
    settings: ShortSettings,
    on_step: Callable[[int, float], object] = lambda step, loss: None,
) -> dict[int, float]:
    """Train `parameters` and measure after every number of steps in `marks`.

    Args:
        batches: one [B, L] of token ids per step; at least `max(marks)` of them.
        marks: steps, ascending, from 1 up.
        measure: called without gradients.
        on_step: told after each step its number and its loss, nats per token.

    Returns:
        steps → what `measure` returned.

    Raises:
        ValueError: if there are fewer batches than steps, or the loss is no longer finite.
    """
    grouped = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
    decays = (settings.weight_decay, 0.0)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(grouped, decays, strict=True) if group],
        lr=settings.learning_rate,
        betas=settings.betas,
    )
    measured: dict[int, float] = {}
    for step, batch in warmed_batches(batches, marks[-1], optimizer, settings, warmup=marks[0]):
        total = 0.0
        with torch.enable_grad():
            for part in batch.split(settings.micro_batch):
                loss = next_token_loss(model, part) * (len(part) / len(batch))
                loss.backward()
                total += float(loss.detach())
        if not math.isfinite(total):
            raise ValueError(f"loss is not finite at recovery step {step}")
        if settings.clip:
            nn.utils.clip_grad_norm_(parameters, settings.clip)
        optimizer.step()
        on_step(step, total)
        if step in marks:
            with torch.no_grad():
                measured[step] = measure()
    return measured


def warmed_batches(
    batches: Iterable[Tensor], steps: int, optimizer: torch.optim.Optimizer, settings: ShortSettings, *, warmup: int
) -> Iterator[tuple[int, Tensor]]:
    """The batches of steps 1, 2, …, each with its learning rate set and the gradients cleared.

    Args:
        warmup: steps of whose number `settings.warmup` is a share.

    Raises:
        ValueError: if there are fewer batches than steps.
    """
    rising, step = max(1, round(settings.warmup * warmup)), 0
    for step, batch in enumerate(islice(batches, steps), start=1):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, step / rising)
        optimizer.zero_grad(set_to_none=True)
        yield step, batch
    if step < steps:
        raise ValueError(f"{step} batches for {steps} steps")
