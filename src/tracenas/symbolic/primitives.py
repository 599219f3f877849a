"""What the primitives compute, element by element on whole layers, and the range their values lie in.

All values have the layer's shape [rows, columns]: X is repeated over the rows, a constant over the layer. Nothing
is undefined: logarithm, root, quotient, exponential and the two scalings are guarded. What overflows is found by
`fault`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tracenas.symbolic.tree import Expression, Path

__all__ = [
    "EXP_LIMIT",
    "LOG_GUARD",
    "PRIMITIVES",
    "SMALLEST_DIVISOR",
    "Primitive",
    "Range",
    "evaluate",
    "fault",
    "value_range",
]

LOG_GUARD = 1e-3
"""log(x) = ln(|x| + LOG_GUARD), as published."""

EXP_LIMIT = 80.0
"""exp(x) = e^x with x clamped to ±EXP_LIMIT: float32 ends at e^88."""

SMALLEST_DIVISOR = 1e-12
"""div(x, y) divides by y, or by ±SMALLEST_DIVISOR where y is nearer to 0."""

Range = tuple[float, float]
"""Lowest and highest value; infinite where unbounded."""

_ANY: Range = (-math.inf, math.inf)


@dataclass(frozen=True)
class Primitive:
    """One operation.

    Args:
        compute: from tensors of one shape to a tensor of that shape.
        bounds: from the arguments' ranges to the result's: the type of an expression.
        meaning: its formula.
    """

    name: str
    compute: Callable[..., Tensor]
    bounds: Callable[..., Range]
    meaning: str


def _log(x: Tensor) -> Tensor:
    return torch.log(x.abs() + LOG_GUARD)


def _exp(x: Tensor) -> Tensor:
    return torch.exp(x.clamp(-EXP_LIMIT, EXP_LIMIT))


def _div(x: Tensor, y: Tensor) -> Tensor:
    small = torch.full_like(y, SMALLEST_DIVISOR)
    return x / torch.where(y.abs() < SMALLEST_DIVISOR, torch.where(y < 0, -small, small), y)


def _div_norm(x: Tensor, y: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(y)
    return x / norm.clamp_min(SMALLEST_DIVISOR)


def _mms(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x)
    return torch.zeros_like(x) if bool(low == high) else (x - low) / (high - low)


def _zsn(x: Tensor) -> Tensor:
    low, high = torch.aminmax(x)
    if bool(low == high):
        return torch.zeros_like(x)
    deviation = x.std(correction=0)
    return torch.zeros_like(x) if bool(deviation == 0) else (x - x.mean()) / deviation


def _magnitude(a: Range) -> Range:
    low = 0.0 if a[0] <= 0 <= a[1] else min(abs(a[0]), abs(a[1]))
    return low, max(abs(a[0]), abs(a[1]))


def _products(a: Range, b: Range) -> Range:
    products = [0.0 if 0.0 in (x, y) else x * y for x in a for y in b]
    return min(products), max(products)


def _squares(a: Range) -> Range:
    return _products(_magnitude(a), _magnitude(a))


def _clamped_exp(x: float) -> float:
    return math.exp(min(max(x, -EXP_LIMIT), EXP_LIMIT))


def _sum(a: Range, b: Range) -> Range:
    low, high = a[0] + b[0], a[1] + b[1]
    return (low if low == low else -math.inf), (high if high == high else math.inf)


def _quotient(a: Range, b: Range) -> Range:
    if a[0] >= 0 and b[0] >= 0:
        return 0.0, math.inf
    return _ANY


def _logs(a: Range) -> Range:
    low, high = _magnitude(a)
    return math.log(low + LOG_GUARD) if math.isfinite(low) else math.inf, (
        math.log(high + LOG_GUARD) if math.isfinite(high) else math.inf
    )


def _roots(a: Range) -> Range:
    low, high = _magnitude(a)
    return math.sqrt(low), math.sqrt(high)


_LIST = (
    Primitive("sqr", lambda x: x * x, _squares, "x²"),
    Primitive("pow", lambda x: x * x, _squares, "x² (the published name for the same)"),
    Primitive("neg", lambda x: -x, lambda a: (-a[1], -a[0]), "-x"),
    Primitive("abs", torch.abs, _magnitude, "|x|"),
    Primitive("log", _log, _logs, "ln(|x| + 0.001)"),
    Primitive("exp", _exp, lambda a: (_clamped_exp(a[0]), _clamped_exp(a[1])), "e^x, x clamped to ±80"),
    Primitive("sqrt", lambda x: x.abs().sqrt(), _roots, "√|x|"),
    Primitive("tanh", torch.tanh, lambda a: (math.tanh(a[0]), math.tanh(a[1])), "tanh x"),
    Primitive("skip", lambda x: x, lambda a: a, "x"),
    Primitive("mms", _mms, lambda a: (0.0, 1.0), "(x - min x) / (max x - min x) over the layer; 0 if constant"),
    Primitive("zsn", _zsn, lambda a: _ANY, "(x - mean x) / std x over the layer; 0 if constant"),
    Primitive("add", lambda x, y: x + y, _sum, "x + y"),
    Primitive("sub", lambda x, y: x - y, lambda a, b: _sum(a, (-b[1], -b[0])), "x - y"),
    Primitive("mul", lambda x, y: x * y, _products, "x · y"),
    Primitive("div", _div, _quotient, "x / y, |y| at least 1e-12"),
    Primitive("div_norm", _div_norm, _quotient, "x / ‖y‖_F over the layer (the published div)"),
)

PRIMITIVES: Mapping[str, Primitive] = {p.name: p for p in _LIST}


def evaluate(expression: Expression, variables: Mapping[str, Tensor]) -> Tensor:
    """The expression's value on one layer, in the variables' dtype (float32 in use).

    Args:
        variables: what the expression reads: tensors that broadcast to one shape [rows, columns].
    """
    names = sorted(expression.variables) or sorted(variables)
    shape = torch.broadcast_shapes(*(variables[n].shape for n in variables))
    expanded = {n: variables[n].expand(shape) for n in names}
    like = expanded[names[0]]
    return _value(expression, expanded, like)


def _value(e: Expression, variables: Mapping[str, Tensor], like: Tensor) -> Tensor:
    if e.value is not None:
        return torch.full((), e.value, dtype=like.dtype, device=like.device).expand(like.shape)
    if not e.args:
        return variables[e.name]
    return PRIMITIVES[e.name].compute(*(_value(a, variables, like) for a in e.args))


def fault(expression: Expression, variables: Mapping[str, Tensor]) -> tuple[Path, str] | None:
    """Why an expression cannot rank a layer's weights, and the innermost part where that begins; None if it can.

    Raises nothing: a value that is not finite anywhere, or the same everywhere, is a fault of the root.
    """
    path: Path = ()
    kind = _kind(evaluate(expression, variables))
    if kind is None:
        return None
    while True:
        node = expression.at(path)
        inner = (i for i, a in enumerate(node.args) if a.value is None and _kind(evaluate(a, variables)) == kind)
        step = next(inner, None)
        if step is None:
            return path, kind
        path = (*path, step)


def _kind(value: Tensor) -> str | None:
    low, high = torch.aminmax(value)
    if not (math.isfinite(float(low)) and math.isfinite(float(high))):
        return "is not finite" if not bool(torch.isnan(value).any()) else "yields NaN"
    return "is constant" if bool(low == high) else None


def value_range(expression: Expression) -> Range:
    """The range that an expression's values must lie in, from W, G, X ≥ 0."""
    if expression.value is not None:
        return expression.value, expression.value
    if not expression.args:
        return 0.0, math.inf
    return PRIMITIVES[expression.name].bounds(*(value_range(a) for a in expression.args))
