"""A metric as users name it: registered, as an expression, or in a JSON file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from tracenas.errors import UserError
from tracenas.rundir import read_json
from tracenas.symbolic import KNOWN, VARIABLES, Expression, Located, locate

if TYPE_CHECKING:
    from torch import Tensor

    from tracenas.saliency.layerwise import Layer
    from tracenas.saliency.unstructured import Metric, Statistics

__all__ = ["as_metric", "explain", "expression_of", "find_metric"]

_READS = {"X": "inputs", "G": "gradient"}


def expression_of(text: str) -> Located:
    """The expression of a text, of a JSON file or of a metric search's run directory.

    Raises:
        UserError: naming the column or the place in the file.
    """
    path = Path(text)
    if path.is_dir() and (path / "best.json").is_file():
        path = path / "best.json"
    if path.suffix == ".json" or path.is_file():
        try:
            return locate(Expression.from_json(read_json(path), where=str(path)).infix)
        except RecursionError as error:
            raise UserError(f"{path}: nested too deeply for an expression") from error
    return locate(text)


def find_metric(text: str) -> "tuple[Metric, Located | None]":
    """The metric, and its expression where it is one.

    Raises:
        UserError: for an unknown name, or an expression that is none.
    """
    from tracenas.saliency.unstructured import METRICS

    if text in METRICS:
        return METRICS.get(text), None
    if re.fullmatch(r"[A-Za-z_][\w-]*", text) and text not in VARIABLES and not Path(text).exists():
        if text in KNOWN:
            return as_metric(locate(KNOWN[text]))
        METRICS.get(text)  # raises, with a suggestion
    return as_metric(expression_of(text))


def as_metric(located: Located) -> "tuple[Metric, Located]":
    """An expression as a metric, compared within output rows.

    Raises:
        UserError: if it reads no variable.
    """
    from tracenas.saliency.unstructured import Metric, Statistics

    expression = located.expression
    if not expression.variables:
        raise UserError(f"metric '{located.text}' is constant: it reads none of {', '.join(VARIABLES)}")

    def score(found: Statistics) -> "Tensor":
        from tracenas.symbolic.primitives import evaluate

        return evaluate(expression, _variables(expression, found))

    needs = frozenset(_READS[v] for v in expression.variables if v in _READS)
    return Metric(located.text, score, needs, reference="expression"), located


def _variables(expression: Expression, found: "Statistics") -> "dict[str, Tensor]":
    values = {"W": found.weight.abs()}
    for name in expression.variables - {"W"}:
        values[name] = found.read(_READS[name])
    return values


def explain(located: Located, layer: "Layer", found: "Statistics") -> str:
    """Why an expression cannot rank a layer, with the place in its text where that begins."""
    from tracenas.symbolic.primitives import fault

    problem = fault(located.expression, _variables(located.expression, found))
    path, kind = problem if problem is not None else ((), "is not usable")
    return f"metric '{located.text}': {located.place(path)} {kind} on {layer.name}"
