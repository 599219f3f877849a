"""The best metric that Pruner-Zero's authors published (Dong et al., arXiv:2406.02924): S = |W·W|·mms(G)."""

import torch
from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["METRIC", "score"]


def score(s: Statistics) -> Tensor:
    """S_ij = W_ij² · (G_ij - min G) / (max G - min G), G = mean |gradient|; a constant G counts as 0."""
    gradient = s.read("gradient")
    low, high = torch.aminmax(gradient)
    scaled = torch.zeros_like(gradient) if bool(low == high) else (gradient - low) / (high - low)
    return s.weight.square() * scaled


METRIC = Metric("pruner_zero", score, frozenset({"gradient"}), reference="arXiv:2406.02924")
