"""Magnitude pruning (Han et al., arXiv:1506.02626): S = |W|, compared within the layer."""

from torch import Tensor

from tracenas.saliency.unstructured.metric import Metric, Statistics

__all__ = ["METRIC", "score"]


def score(s: Statistics) -> Tensor:
    """S_ij = |W_ij|."""
    return s.weight.abs()


METRIC = Metric("magnitude", score, compare="layer", reference="arXiv:1506.02626")
