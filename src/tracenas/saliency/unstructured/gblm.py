"""Gradient-blended pruning, GBLM (Das et al., arXiv:2311.04902): S = |W|·‖X‖₂ + α·|W|·‖G‖₂."""

import math

from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["ALPHA", "METRIC", "score"]

ALPHA = 100.0
"""Weight of the gradient, the published default."""


def score(s: Statistics) -> Tensor:
    """S_ij = |W_ij| · (‖X_j‖ + α ‖G_ij‖).

    As published, ‖X_j‖² is the sum of x² over a sequence's tokens, averaged over the sequences, and ‖G_ij‖² the
    squared gradient of a sequence's mean loss, averaged over the sequences.
    """
    norms = s.read("inputs") * math.sqrt(s.tokens)
    return s.weight.abs() * (norms + ALPHA * s.read("gradient_rms"))


METRIC = Metric("gblm", score, frozenset({"inputs", "gradient_rms"}), reference="arXiv:2311.04902")
