"""Random scores: the baseline below which no metric should fall."""

import torch
from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["METRIC", "score"]


def score(s: Statistics) -> Tensor:
    """S_ij ~ U(0, 1), the same for the same seed, block and layer on every device."""
    return torch.rand(s.weight.shape, generator=s.generator).to(s.weight.device)


METRIC = Metric("random", score, reference="baseline")
