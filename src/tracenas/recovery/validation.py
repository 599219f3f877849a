"""The loss on examples that are not trained on."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["held_out_nll"]

_CHUNK = 1 << 24


def held_out_nll(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
    """Mean -log p(x_t | x_<t) over the labels of batches [N, L] as in training (-100: none), nats per token.

    The model is called as in training, so that a sharded or wrapped one works as well.
    """
    training, device = model.training, next(iter(model.parameters())).device
    total, count = torch.zeros((), dtype=torch.float64), 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            inputs = {name: value.to(device) for name, value in batch.items() if name != "labels"}
            labels = batch["labels"].to(device)[:, 1:].flatten()
            count += int((labels != -100).sum())
            logits = model(**inputs, use_cache=False).logits[:, :-1].flatten(0, 1)
            size = max(1, _CHUNK // logits.shape[1])
            for part, expected in zip(logits.split(size), labels.split(size), strict=True):
                total += functional.cross_entropy(part.float(), expected, reduction="sum").double().cpu()
    model.train(training)
    return float(total) / count
