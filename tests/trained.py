"""Tiny models that have learned something: a source of tokens whose next one depends on the two before it."""

from typing import Any

import torch
from tiny import tiny_model
from torch import Tensor

_USED, _CHOICES = 16, 2


def source_tokens(count: int, length: int, seed: int) -> Tensor:
    """Windows of the source, int64 [count, length]; every seed gives others."""
    table = torch.randint(1, 1 + _USED, (2 * _USED + 1, _CHOICES), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(1, 1 + _USED, (count, length), generator=generator)
    choices = torch.randint(_CHOICES, (count, length), generator=generator)
    for place in range(2, length):
        rows[:, place] = table[rows[:, place - 1] + rows[:, place - 2], choices[:, place]]
    return rows


def trained_model(model_type: str, *, seed: int = 0, steps: int, **changes: Any) -> Any:
    """A frozen tiny model after a few steps on the source (seeds of tokens from 1,000,000 on)."""
    model = tiny_model(model_type, seed=seed, **changes).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3, weight_decay=0.0)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 8e-3 * min(1.0, (step + 1) / 20, 1.2 * (steps - step) / steps)
            tokens = source_tokens(16, 32, 1_000_000 + 1000 * seed + step)
            optimizer.zero_grad()
            model(input_ids=tokens, labels=tokens).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.eval().requires_grad_(False)
