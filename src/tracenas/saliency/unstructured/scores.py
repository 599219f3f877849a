"""Metrics that are a formula each: magnitude, Wanda, GBLM, Pruner-Zero's best, random scores."""

import math

import torch
from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["ALPHA", "GBLM", "MAGNITUDE", "PRUNER_ZERO", "RANDOM", "WANDA"]

ALPHA = 100.0
"""Weight of GBLM's gradient, the published default."""


def magnitude(s: Statistics) -> Tensor:
    """S_ij = |W_ij| (Han et al., arXiv:1506.02626), compared within the layer."""
    return s.weight.abs()


def wanda(s: Statistics) -> Tensor:
    """S_ij = |W_ij| · √mean x_j² (Sun et al., arXiv:2306.11695, eq. 1), compared within the output row.

    The mean in place of the sum scales all columns alike.
    """
    return s.weight.abs() * s.read("inputs")


def gblm(s: Statistics) -> Tensor:
    """S_ij = |W_ij| · (‖X_j‖ + α ‖G_ij‖): gradient-blended pruning (Das et al., arXiv:2311.04902).

    As published, ‖X_j‖² is the sum of x² over a sequence's tokens, averaged over the sequences, and ‖G_ij‖² the
    squared gradient of a sequence's mean loss, averaged over the sequences.
    """
    norms = s.read("inputs") * math.sqrt(s.tokens)
    return s.weight.abs() * (norms + ALPHA * s.read("gradient_rms"))


def pruner_zero(s: Statistics) -> Tensor:
    """S_ij = W_ij² · (G_ij - min G) / (max G - min G), G = mean |gradient|; a constant G counts as 0.

    The best metric that Pruner-Zero's authors published (Dong et al., arXiv:2406.02924): S = |W·W|·mms(G).
    """
    gradient = s.read("gradient")
    low, high = torch.aminmax(gradient)
    scaled = torch.zeros_like(gradient) if bool(low == high) else (gradient - low) / (high - low)
    return s.weight.square() * scaled


def random(s: Statistics) -> Tensor:
    """S_ij ~ U(0, 1), the same for the same seed, block and layer on every device: no metric should fall below it."""
    return torch.rand(s.weight.shape, generator=s.generator).to(s.weight.device)


GBLM = Metric("gblm", gblm, frozenset({"inputs", "gradient_rms"}), reference="arXiv:2311.04902")
MAGNITUDE = Metric("magnitude", magnitude, compare="layer", reference="arXiv:1506.02626")
PRUNER_ZERO = Metric("pruner_zero", pruner_zero, frozenset({"gradient"}), reference="arXiv:2406.02924")
RANDOM = Metric("random", random, reference="baseline")
WANDA = Metric("wanda", wanda, frozenset({"inputs"}), reference="arXiv:2306.11695, eq. 1")
