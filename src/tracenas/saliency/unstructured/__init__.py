"""Metrics for unstructured and N:M pruning: one file each."""

from tracenas.registry import Registry
from tracenas.saliency.unstructured.metric import NEEDS, Metric, Statistics

__all__ = ["METRICS", "NEEDS", "Metric", "Statistics"]

METRICS: Registry[Metric] = Registry(
    "unstructured_metric",
    {
        "gblm": "tracenas.saliency.unstructured.gblm:METRIC",
        "magnitude": "tracenas.saliency.unstructured.magnitude:METRIC",
        "pruner_zero": "tracenas.saliency.unstructured.pruner_zero:METRIC",
        "random": "tracenas.saliency.unstructured.random:METRIC",
        "sparsegpt": "tracenas.saliency.unstructured.sparsegpt:METRIC",
        "wanda": "tracenas.saliency.unstructured.wanda:METRIC",
    },
)
