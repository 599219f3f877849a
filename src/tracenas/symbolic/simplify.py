"""Opposing-operation simplification (Pruner-Zero §3): a canonical form without operations that undo each other.

Every rewrite keeps the value up to rounding, for all inputs: tests prove each one on random tensors. Two
well-known candidates are missing because they are wrong under the guards: log(exp(x)) is ln(e^x + 0.001), which
is not x; and (x·y)/y is x only where y cannot come near 0, so that rewrite asks for y's range first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from tracenas.symbolic.primitives import LOG_GUARD, SMALLEST_DIVISOR, evaluate, value_range
from tracenas.symbolic.tree import Expression, call, constant

__all__ = ["RULES", "Rule", "simplify"]


@dataclass(frozen=True)
class Rule:
    """Rewrites of a node that belong together.

    Args:
        patterns: texts that it applies to, with A and B for any expressions.
        apply: the new node, None where the rule does not apply.
    """

    name: str
    patterns: tuple[str, ...]
    apply: Callable[[Expression], Expression | None]


def _unary(e: Expression) -> Expression | None:
    """A primitive of one argument that undoes the one below it, or makes no difference."""
    match e:
        case Expression("skip", (x,)) | Expression("neg", (Expression("neg", (x,)),)):
            return x
        case Expression("pow", (x,)):
            return call("sqr", x)
        case Expression("abs" | "sqr" | "sqrt" | "log", (Expression("abs" | "neg", (x,)),)):
            return call(e.name, x)
        case Expression("abs", (x,)) if value_range(x)[0] >= 0:
            return x
        case Expression("sqr", (Expression("sqrt", (x,)),)) | Expression("sqrt", (Expression("sqr", (x,)),)):
            return call("abs", x)
        case Expression("exp", (Expression("log", (x,)),)):
            return call("add", call("abs", x), constant(LOG_GUARD))
        case Expression("mms" | "zsn", (Expression("mms" | "zsn", (x,)),)):
            return call(e.name, x)
        case Expression("neg", (Expression("sub", (x, y)),)):
            return call("sub", y, x)
    return None


def _inverse(e: Expression) -> Expression | None:
    """x · x → x², and what adds and takes away, or multiplies and divides by, the same operand."""
    match e:
        case Expression("mul", (x, y)) if x == y:
            return call("sqr", x)
        case Expression("sub", (Expression("add", (x, y)), z)) if z in (x, y):
            return x if z == y else y
        case Expression("sub", (z, Expression("sub", (x, y)))) if z == x:
            return y
        case Expression("sub", (z, Expression("add", (x, y)))) if z in (x, y):
            return call("neg", y if z == x else x)
        case Expression("add", (Expression("sub", (x, y)), z)) if z == y:
            return x
        case Expression("add", (z, Expression("sub", (x, y)))) if z == y:
            return x
        case Expression("div", (Expression("mul", (x, y)), z)) if z in (x, y) and _nonzero(z):
            return x if z == y else y
        case Expression("mul", (Expression("div", (x, y)), z)) if z == y and _nonzero(z):
            return x
        case Expression("mul", (z, Expression("div", (x, y)))) if z == y and _nonzero(z):
            return x
    return None


def _signs(e: Expression) -> Expression | None:
    """A minus sign moves outwards, where it becomes a difference or meets another.

    Not out of a divisor that can come near 0: there the guard divides by the same number for y and -y.
    """
    match e:
        case Expression("mul" | "div", (Expression("neg", (x,)), Expression("neg", (y,)))) if _movable(e):
            return call(e.name, x, y)
        case Expression("mul" | "div", (Expression("neg", (x,)), y)):
            return call("neg", call(e.name, x, y))
        case Expression("mul" | "div", (x, Expression("neg", (y,)))) if _movable(e):
            return call("neg", call(e.name, x, y))
        case Expression("add" | "sub", (x, Expression("neg", (y,)))):
            return call("sub" if e.name == "add" else "add", x, y)
        case Expression("add", (Expression("neg", (x,)), y)):
            return call("sub", y, x)
        case Expression("sub", (Expression("neg", (x,)), y)):
            return call("neg", call("add", x, y))
    return None


def _movable(e: Expression) -> bool:
    return e.name == "mul" or _nonzero(e.args[1])


def _nonzero(e: Expression) -> bool:
    low, high = value_range(e)
    return low >= SMALLEST_DIVISOR or high <= -SMALLEST_DIVISOR


def _neutral(e: Expression) -> Expression | None:
    """x + 0, x - 0, x · 1, x / 1 → x; x · 0 → 0; x - x → 0; x / x → 1 where x is not 0."""
    match e:
        case Expression("add" | "sub", (x, Expression("", (), 0))) | Expression(
            "mul" | "div", (x, Expression("", (), 1))
        ):
            return x
        case Expression("add", (Expression("", (), 0), x)) | Expression("mul", (Expression("", (), 1), x)):
            return x
        case Expression("mul", (x, y)) if 0 in (x.value, y.value):
            return constant(0.0)
        case Expression("sub", (x, y)) if x == y:
            return constant(0.0)
        case Expression("div", (x, y)) if x == y and _nonzero(x):
            return constant(1.0)
    return None


def _fold(e: Expression) -> Expression | None:
    """A primitive of constants → its value, unless that depends on the layer's size or overflows."""
    if not e.args or e.name == "div_norm" or any(a.value is None for a in e.args):
        return None
    value = float(evaluate(e, {"W": torch.ones(1, 1, dtype=torch.float64)}))
    return constant(value) if abs(value) < 3e38 else None


def _ordered(e: Expression) -> Expression | None:
    """Operands of + and · in the order of their texts."""
    if e.name in ("add", "mul") and e.args[0].text > e.args[1].text:
        return call(e.name, e.args[1], e.args[0])
    return None


RULES: tuple[Rule, ...] = (
    Rule(
        "one argument",
        (
            *("skip(A)", "pow(A)", "neg(neg(A))", "neg(sub(A, B))"),
            *("abs(abs(A))", "abs(neg(A))", "abs(sqr(A))", "abs(exp(A))", "abs(W)"),
            *("sqr(abs(A))", "sqr(neg(A))", "sqr(sqrt(A))", "sqrt(abs(A))", "sqrt(neg(A))", "sqrt(sqr(A))"),
            *("log(abs(A))", "log(neg(A))", "exp(log(A))"),
            *("mms(mms(A))", "mms(zsn(A))", "zsn(zsn(A))", "zsn(mms(A))"),
        ),
        _unary,
    ),
    Rule(
        "the same operand twice",
        (
            *("mul(A, A)", "sub(add(A, B), B)", "sub(add(B, A), B)", "sub(A, sub(A, B))", "sub(A, add(A, B))"),
            *("add(sub(A, B), B)", "add(B, sub(A, B))", "div(mul(A, exp(W)), exp(W))", "div(mul(W + 1, A), W + 1)"),
            *("mul(div(A, exp(W)), exp(W))", "mul(X + 1, div(A, X + 1))"),
        ),
        _inverse,
    ),
    Rule(
        "signs outwards",
        (
            *("mul(neg(A), B)", "mul(neg(A), neg(B))", "div(neg(A), B)", "div(A, neg(exp(W)))"),
            *("add(A, neg(B))", "add(neg(A), B)", "sub(A, neg(B))", "sub(neg(A), B)"),
        ),
        _signs,
    ),
    Rule(
        "neutral elements",
        (
            *("add(A, 0)", "add(0, A)", "sub(A, 0)", "mul(A, 1)", "mul(1, A)", "div(A, 1)", "mul(A, 0)"),
            *("sub(A, A)", "div(exp(W), exp(W))"),
        ),
        _neutral,
    ),
    Rule("constants", ("add(1, 2)", "sqrt(3)", "mms(2)", "div(1, 0)"), _fold),
    Rule("order", ("mul(X, G)", "add(X, G)"), _ordered),
)


@lru_cache(maxsize=1 << 16)
def simplify(expression: Expression) -> Expression:
    """The canonical form: arguments first, then every rule until none applies. Idempotent."""
    e = Expression(expression.name, tuple(simplify(a) for a in expression.args), expression.value)
    for rule in RULES:
        if (new := rule.apply(e)) is not None:
            return simplify(new)
    return e
