"""Opposing-operation simplification (Pruner-Zero §3): a canonical form without operations that undo each other.

Every rewrite keeps the value up to rounding, for all inputs: tests prove each one on random tensors. Two
well-known candidates are missing because they are wrong under the guards: log(exp(x)) is ln(e^x + 0.001), which
is not x; and (x·y)/y is x only where y cannot come near 0, so that rewrite asks for y's range first.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from tracenas.symbolic.primitives import LOG_GUARD, SMALLEST_DIVISOR, evaluate, range_of
from tracenas.symbolic.tree import Expression, call, constant

__all__ = ["RULES", "Rule", "simplify"]

Rewrite = Callable[[Expression], Expression | None]


@dataclass(frozen=True)
class Rule:
    """One rewrite of a node.

    Args:
        pattern: texts that it applies to, with A and B for any expressions.
        apply: the new node, None where the rule does not apply.
    """

    name: str
    pattern: tuple[str, ...]
    apply: Rewrite


def _unary(outer: str, inner: str, make: Callable[[Expression], Expression]) -> Rewrite:
    """outer(inner(x)) → make(x)."""

    def rewrite(e: Expression) -> Expression | None:
        return make(e.args[0].args[0]) if e.name == outer and e.args[0].name == inner else None

    return rewrite


def _drop_inner(outer: str, *inner: str) -> Rewrite:
    """outer(inner(x)) → outer(x)."""

    def rewrite(e: Expression) -> Expression | None:
        return call(outer, e.args[0].args[0]) if e.name == outer and e.args[0].name in inner else None

    return rewrite


def _named(name: str, make: Callable[..., Expression | None]) -> Rewrite:
    """make(arguments) for a primitive."""
    return lambda e: make(*e.args) if e.name == name else None


def _unary_sub(e: Expression) -> Expression | None:
    """-(x - y) → y - x."""
    return call("sub", *e.args[0].args[::-1]) if e.name == "neg" and e.args[0].name == "sub" else None


def _nonzero(e: Expression) -> bool:
    low, high = range_of(e)
    return low >= SMALLEST_DIVISOR or high <= -SMALLEST_DIVISOR


def _abs_of_positive(x: Expression) -> Expression | None:
    return x if range_of(x)[0] >= 0 else None


def _sub_of_add(x: Expression, y: Expression) -> Expression | None:
    """(a + y) - y → a, (y + b) - y → b: only with the same operand."""
    if x.name != "add" or y not in x.args:
        return None
    return x.args[0] if x.args[1] == y else x.args[1]


def _add_of_sub(x: Expression, y: Expression) -> Expression | None:
    """(a - y) + y → a, in either order."""
    for first, second in ((x, y), (y, x)):
        if first.name == "sub" and first.args[1] == second:
            return first.args[0]
    return None


def _sub_of_own(x: Expression, y: Expression) -> Expression | None:
    """x - (x - b) → b, x - (x + b) → -b."""
    if y.name == "sub" and y.args[0] == x:
        return y.args[1]
    if y.name == "add" and x in y.args:
        return call("neg", y.args[1] if y.args[0] == x else y.args[0])
    return None


def _div_of_mul(x: Expression, y: Expression) -> Expression | None:
    if x.name != "mul" or y not in x.args or not _nonzero(y):
        return None
    return x.args[0] if x.args[1] == y else x.args[1]


def _mul_of_div(x: Expression, y: Expression) -> Expression | None:
    for first, second in ((x, y), (y, x)):
        if first.name == "div" and first.args[1] == second and _nonzero(second):
            return first.args[0]
    return None


def _signs(e: Expression) -> Expression | None:
    """A minus sign moves outwards, where it becomes a difference or meets another."""
    if e.name not in ("add", "sub", "mul", "div"):
        return None
    x, y = e.args
    minus_x, minus_y = x.name == "neg", y.name == "neg"
    if e.name == "div" and minus_y and not _nonzero(y):  # near 0 the guard divides by the same number for y and -y
        minus_y = False
    if e.name in ("mul", "div") and (minus_x or minus_y):
        bare = call(e.name, x.args[0] if minus_x else x, y.args[0] if minus_y else y)
        return bare if minus_x and minus_y else call("neg", bare)
    if minus_y:
        return call("sub" if e.name == "add" else "add", x, y.args[0])
    if minus_x and e.name == "add":
        return call("sub", y, x.args[0])
    if minus_x and e.name == "sub":
        return call("neg", call("add", x.args[0], y))
    return None


def _neutral(e: Expression) -> Expression | None:
    """x + 0, x - 0, x · 1, x / 1 → x; x · 0 → 0; x - x → 0; x / x → 1 where x is not 0."""
    if len(e.args) != 2:
        return None
    x, y = e.args
    if (e.name in ("add", "sub") and y.value == 0) or (e.name in ("mul", "div") and y.value == 1):
        return x
    if (e.name == "add" and x.value == 0) or (e.name == "mul" and x.value == 1):
        return y
    if e.name == "mul" and 0 in (x.value, y.value):
        return constant(0.0)
    if e.name == "sub" and x == y:
        return constant(0.0)
    return constant(1.0) if e.name == "div" and x == y and _nonzero(x) else None


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
    Rule("skip", ("skip(A)",), _named("skip", lambda x: x)),
    Rule("pow is sqr", ("pow(A)",), _named("pow", lambda x: call("sqr", x))),
    Rule("neg of neg", ("neg(neg(A))",), _unary("neg", "neg", lambda x: x)),
    Rule("abs of abs or neg", ("abs(abs(A))", "abs(neg(A))"), _drop_inner("abs", "abs", "neg")),
    Rule("abs of what is not negative", ("abs(sqr(A))", "abs(exp(A))", "abs(W)"), _named("abs", _abs_of_positive)),
    Rule("sqr of abs or neg", ("sqr(abs(A))", "sqr(neg(A))"), _drop_inner("sqr", "abs", "neg")),
    Rule("sqrt of abs or neg", ("sqrt(abs(A))", "sqrt(neg(A))"), _drop_inner("sqrt", "abs", "neg")),
    Rule("log of abs or neg", ("log(abs(A))", "log(neg(A))"), _drop_inner("log", "abs", "neg")),
    Rule("sqr of sqrt", ("sqr(sqrt(A))",), _unary("sqr", "sqrt", lambda x: call("abs", x))),
    Rule("sqrt of sqr", ("sqrt(sqr(A))",), _unary("sqrt", "sqr", lambda x: call("abs", x))),
    Rule(
        "exp of log",
        ("exp(log(A))",),
        _unary("exp", "log", lambda x: call("add", call("abs", x), constant(LOG_GUARD))),
    ),
    Rule("mms of a scaling", ("mms(mms(A))", "mms(zsn(A))"), _drop_inner("mms", "mms", "zsn")),
    Rule("zsn of a scaling", ("zsn(zsn(A))", "zsn(mms(A))"), _drop_inner("zsn", "zsn", "mms")),
    Rule("neg of sub", ("neg(sub(A, B))",), _unary_sub),
    Rule("x·x", ("mul(A, A)",), _named("mul", lambda x, y: call("sqr", x) if x == y else None)),
    Rule("(x+y)-y", ("sub(add(A, B), B)", "sub(add(B, A), B)"), _named("sub", _sub_of_add)),
    Rule("(x-y)+y", ("add(sub(A, B), B)", "add(B, sub(A, B))"), _named("add", _add_of_sub)),
    Rule("x-(x±y)", ("sub(A, sub(A, B))", "sub(A, add(A, B))"), _named("sub", _sub_of_own)),
    Rule("(x·y)/y", ("div(mul(A, exp(W)), exp(W))", "div(mul(W + 1, A), W + 1)"), _named("div", _div_of_mul)),
    Rule("(x/y)·y", ("mul(div(A, exp(W)), exp(W))", "mul(X + 1, div(A, X + 1))"), _named("mul", _mul_of_div)),
    Rule(
        "signs outwards",
        (
            "mul(neg(A), B)",
            "mul(neg(A), neg(B))",
            "div(neg(A), B)",
            "div(A, neg(exp(W)))",
            "add(A, neg(B))",
            "add(neg(A), B)",
            "sub(A, neg(B))",
            "sub(neg(A), B)",
        ),
        _signs,
    ),
    Rule(
        "neutral elements",
        (
            "add(A, 0)",
            "add(0, A)",
            "sub(A, 0)",
            "mul(A, 1)",
            "mul(1, A)",
            "div(A, 1)",
            "mul(A, 0)",
            "sub(A, A)",
            "div(exp(W), exp(W))",
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
