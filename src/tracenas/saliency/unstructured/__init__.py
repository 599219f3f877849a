"""Metrics for unstructured and N:M pruning, a line each."""

from tracenas.registry import Registry
from tracenas.saliency.unstructured.metric import NEEDS, Metric, Statistics
from tracenas.saliency.unstructured.scores import gblm, magnitude, pruner_zero, random, wanda
from tracenas.saliency.unstructured.sparsegpt import score, solve

__all__ = ["METRICS", "NEEDS", "Metric", "Statistics"]

METRICS: Registry[Metric] = Registry("unstructured_metric")

for _metric in (
    Metric("gblm", gblm, frozenset({"inputs", "gradient_rms"}), reference="arXiv:2311.04902"),
    Metric("magnitude", magnitude, compare="layer", reference="arXiv:1506.02626"),
    Metric("pruner_zero", pruner_zero, frozenset({"gradient"}), reference="arXiv:2406.02924"),
    Metric("random", random, reference="baseline"),
    Metric("sparsegpt", score, frozenset({"gram"}), compare="layer", solve=solve, reference="arXiv:2301.00774"),
    Metric("wanda", wanda, frozenset({"inputs"}), reference="arXiv:2306.11695, eq. 1"),
):
    METRICS.add(_metric.name, _metric)
