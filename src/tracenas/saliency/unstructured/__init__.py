"""Metrics for unstructured and N:M pruning: a line each, beside its formula a `Metric`."""

from tracenas.registry import Registry
from tracenas.saliency.unstructured.metric import NEEDS, Metric, Statistics

__all__ = ["METRICS", "NEEDS", "Metric", "Statistics"]

METRICS: Registry[Metric] = Registry(
    "unstructured_metric",
    {
        "gblm": "tracenas.saliency.unstructured.scores:GBLM",
        "magnitude": "tracenas.saliency.unstructured.scores:MAGNITUDE",
        "pruner_zero": "tracenas.saliency.unstructured.scores:PRUNER_ZERO",
        "random": "tracenas.saliency.unstructured.scores:RANDOM",
        "sparsegpt": "tracenas.saliency.unstructured.sparsegpt:SPARSEGPT",
        "wanda": "tracenas.saliency.unstructured.scores:WANDA",
    },
)
