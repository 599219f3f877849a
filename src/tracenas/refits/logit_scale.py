"""One factor for all logits: temperature scaling (arXiv:1706.04599, §4.2).

A model that has lost units is surer of its predictions than it is right. With z the logits of a token and y the token
that follows, the factor is

    s = argmin Σ_t -log softmax(s z_t)[y_t].

The sum is convex in s. Newton's method, with p = softmax(s z):

    s ← s - Σ_t (E_p[z] - z_y) / Σ_t Var_p[z].

Where logits pass a soft cap, u = c tanh(s z / c), v = ∂u/∂s takes the place of z (Gauss and Newton's method). No
ranking of tokens changes.

Shapes: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tracenas.models.functionals.loss import chunk_tokens

__all__ = ["BestScale", "best_scale"]

_LEAST, _MOST = 0.25, 4.0
"""Factors that are looked at."""

_CLOSE, _STEPS = 1e-3, 12
"""Change of the factor below which it is found, and steps at most."""

_TENSORS = 4
"""As large as a chunk's logits, at a time."""


class BestScale(NamedTuple):
    """A factor, and the mean loss without and with it, nats per token."""

    factor: float
    before: float
    after: float


def best_scale(hidden: Tensor, head: Tensor, labels: Tensor, softcap: float | None = None) -> BestScale:
    """The factor of least loss.

    Args:
        hidden: what enters the head, [T, D].
        head: its matrix, [V, D].
        labels: int64 [T].
        softcap: c where logits pass c·tanh(x/c) (Gemma 2).
    """
    factor = 1.0
    before, step = _newton(hidden, head, labels, softcap, factor)
    loss = before
    for _ in range(_STEPS):
        proposed = min(max(factor + step, _LEAST), _MOST)
        if not abs(proposed - factor) > _CLOSE:
            break
        found, following = _newton(hidden, head, labels, softcap, proposed)
        if found < loss:
            factor, loss, step = proposed, found, following
        else:
            step /= 2
    return BestScale(factor, before, loss)


def _newton(hidden: Tensor, head: Tensor, labels: Tensor, softcap: float | None, factor: float) -> tuple[float, float]:
    """Mean loss at a factor, nats per token, and Newton's step from it; 0 where the loss does not depend on it."""
    sums = torch.zeros(3, dtype=torch.float64, device=hidden.device)
    with torch.no_grad():
        chunk = max(1, chunk_tokens(head) // _TENSORS)
        for h_CD, y_C in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            v_CV = (h_CD @ head.T).to(torch.promote_types(head.dtype, torch.float32))
            u_CV = v_CV * factor
            if softcap is not None:
                u_CV.div_(softcap).tanh_()
                v_CV.mul_(1 - u_CV.square())
                u_CV.mul_(softcap)
            of_label = y_C[:, None]
            lse_C1 = u_CV.logsumexp(1, keepdim=True)
            sums[0] += (lse_C1 - u_CV.gather(1, of_label)).sum(dtype=torch.float64)
            p_CV = u_CV.sub_(lse_C1).exp_()
            mean_C = torch.linalg.vecdot(p_CV, v_CV)
            sums[1] += (mean_C - v_CV.gather(1, of_label)[:, 0]).sum(dtype=torch.float64)
            square_C = torch.linalg.vecdot(p_CV.mul_(v_CV), v_CV)
            sums[2] += (square_C - mean_C.square()).sum(dtype=torch.float64)
    loss, slope, curvature = (sums / len(labels)).tolist()
    return loss, -slope / curvature if curvature > 0 else 0.0
