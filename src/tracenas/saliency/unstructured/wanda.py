"""Wanda (Sun et al., arXiv:2306.11695, eq. 1): S = |W|·‖X‖₂, compared within the output row."""

from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["METRIC", "score"]


def score(s: Statistics) -> Tensor:
    """S_ij = |W_ij| · √mean x_j²; the mean in place of the sum scales all columns alike."""
    return s.weight.abs() * s.read("inputs")


METRIC = Metric("wanda", score, frozenset({"inputs"}), reference="arXiv:2306.11695, eq. 1")
