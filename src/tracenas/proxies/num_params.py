"""Number of parameters: the larger, the better (TraceNAS Table 1, "#Params")."""

from tracenas.proxies.measurement import Measurement, Proxy

__all__ = ["PROXY", "num_params"]


def num_params(measurement: Measurement) -> float:
    """Parameters of the materialised model, embeddings and head included, tied ones once."""
    return float(measurement.parameters)


PROXY = Proxy(
    "num_params",
    num_params,
    reference="baseline; TraceNAS Table 1",
    cost="nothing of its own; a forward pass, so that the loss is known",
)
