"""What is recorded of a candidate while its one forward (and backward) pass runs: one file per kind of record."""

from tracenas.scoring.observers.activations import CodeObserver, FeatureObserver
from tracenas.scoring.observers.divergence import DivergenceObserver
from tracenas.scoring.observers.hidden import HiddenObserver
from tracenas.scoring.observers.observer import AnchoredObserver, Observer
from tracenas.scoring.observers.traces import TraceObserver
from tracenas.scoring.observers.weight_gradients import WeightGradientObserver

__all__ = ["OBSERVERS", "AnchoredObserver", "Observer"]

OBSERVERS: dict[str, type[Observer]] = {
    "trace": TraceObserver,
    "weight_gradients": WeightGradientObserver,
    "codes": CodeObserver,
    "features": FeatureObserver,
    "hidden": HiddenObserver,
    "base_logits": DivergenceObserver,
}
"""By the name of what a proxy needs; a trace is watched before weight gradients."""
