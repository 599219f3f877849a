"""A metric as users name it: registered, or an expression."""

import re
from pathlib import Path

from torch import Tensor

from tracenas.errors import UserError
from tracenas.saliency.layerwise import LinearLayer
from tracenas.saliency.sparsify import Explain
from tracenas.saliency.unstructured import METRICS, Metric, Statistics
from tracenas.symbolic import KNOWN, VARIABLES, Located, locate
from tracenas.symbolic.primitives import evaluate, fault
from tracenas.symbolic.reading import located_expression

__all__ = ["as_metric", "find_metric"]

_READS = {"X": "inputs", "G": "gradient"}


def find_metric(text: str) -> tuple[Metric, Explain | None]:
    """The metric and, where it is an expression, what explains that it cannot rank a layer.

    Raises:
        UserError: for an unknown name, or an expression that is none.
    """
    if text in METRICS:
        return METRICS.get(text), None
    if re.fullmatch(r"[A-Za-z_][\w-]*", text) and text not in VARIABLES and not Path(text).exists():
        if text in KNOWN:
            return as_metric(locate(KNOWN[text]))
        METRICS.check(text)  # raises, with a suggestion
    return as_metric(located_expression(text))


def as_metric(located: Located) -> tuple[Metric, Explain]:
    """An expression as a metric, compared within output rows.

    Raises:
        UserError: if it reads no variable.
    """
    expression = located.expression
    if not expression.variables:
        raise UserError(f"metric '{located.text}' is constant: it reads none of {', '.join(VARIABLES)}")

    def variables(statistics: Statistics) -> dict[str, Tensor]:
        reads = {name: statistics.read(_READS[name]) for name in expression.variables - {"W"}}
        return {"W": statistics.weight.abs(), **reads}

    def explain(_: Metric, layer: LinearLayer, statistics: Statistics) -> str:
        path, kind = fault(expression, variables(statistics)) or ((), "is not usable")
        return f"metric '{located.text}': {located.place(path)} {kind} on {layer.name}"

    needs = frozenset(_READS[v] for v in expression.variables if v in _READS)
    metric = Metric(located.text, lambda s: evaluate(expression, variables(s)), needs, reference="expression")
    return metric, explain
