"""Every rewrite keeps the value for random sub-expressions on random tensors; the form is canonical."""

import re

import pytest
import torch
from expressions import expressions
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tracenas.symbolic import KNOWN, Expression, parse
from tracenas.symbolic.primitives import PRIMITIVES, evaluate
from tracenas.symbolic.simplify import RULES, Rule, simplify
from tracenas.symbolic.tree import constant

PATTERNS = [pytest.param(rule, text, id=f"{rule.name}: {text}") for rule in RULES for text in rule.patterns]


def tensors(seed: int, *, zeros: bool = True) -> dict[str, torch.Tensor]:
    """Non-negative as W, G and X are, over many magnitudes, with exact zeros; float64."""
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in (("W", (6, 8)), ("G", (6, 8)), ("X", (8,))):
        value = torch.rand(shape, generator=g, dtype=torch.float64)
        value = value * 10 ** (4 * torch.rand(shape, generator=g, dtype=torch.float64) - 3)
        out[name] = value * (torch.rand(shape, generator=g) > 0.15) if zeros else value
    return out


def largest(expression: Expression, variables: dict[str, torch.Tensor]) -> float:
    """The largest intermediate value: rounding is relative to it."""
    return max(float(evaluate(e, variables).abs().max()) for _, e in expression.walk())


def assert_same(before: Expression, after: Expression, variables: dict[str, torch.Tensor]) -> None:
    x, y = evaluate(before, variables), evaluate(after, variables)
    scale = max(1.0, largest(before, variables), largest(after, variables))
    assume(scale < 1e30)
    for e in (before, after):
        for _, node in e.walk():  # scaling to unit range or deviation magnifies rounding where there is hardly any
            if node.name in ("mms", "zsn"):
                inner = evaluate(node.args[0], variables)
                if float(inner.max()) == float(inner.min()):
                    continue
                assume(float(inner.max() - inner.min()) > 1e-4 * max(1e-3, float(inner.abs().max())))
                assume(largest(node.args[0], variables) < 1e4 * max(1e-3, float(inner.max() - inner.min())))
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10 * scale)


@pytest.mark.parametrize(("rule", "text"), PATTERNS)
@settings(deadline=None, max_examples=15)
@given(a=expressions(2), b=expressions(2), seed=st.integers(0, 10_000))
def test_each_rewrite_keeps_the_value(rule: Rule, text: str, a: Expression, b: Expression, seed: int) -> None:
    filled = re.sub(r"\bB\b", lambda _: f"({b.infix})", re.sub(r"\bA\b", lambda _: f"({a.infix})", text))
    before = parse(filled)
    after = rule.apply(before)
    if after is not None:
        assert_same(before, after, tensors(seed))


@pytest.mark.parametrize(("rule", "text"), PATTERNS)
def test_each_rewrite_applies_to_its_pattern(rule: Rule, text: str) -> None:
    filled = re.sub(r"\bB\b", "log(G)", re.sub(r"\bA\b", "tanh(X - W)", text))
    assert rule.apply(parse(filled)) is not None


@settings(deadline=None, max_examples=120)
@given(expressions(3), st.integers(0, 10_000))
def test_simplification_keeps_the_value_and_is_idempotent(expression: Expression, seed: int) -> None:
    canonical = simplify(expression)
    assert simplify(canonical) == canonical
    assert parse(canonical.text) == canonical
    assert_same(expression, canonical, tensors(seed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abs(W * W) * mms(G)", "mul(mms(G), sqr(W))"),
        ("exp(log(W))", "add(0.001, W)"),
        ("sqr(sqrt(X - W))", "abs(sub(X, W))"),
        ("neg(neg(skip(pow(W))))", "sqr(W)"),
        ("(W + X) - X", "W"),
        ("(W + X) - G", "sub(add(W, X), G)"),
        ("(W * exp(X)) / exp(X)", "W"),
        ("X * W", "mul(W, X)"),
    ],
)
def test_canonical_forms(text: str, expected: str) -> None:
    assert simplify(parse(text)).text == expected


def test_what_looks_opposing_and_is_not_stays() -> None:
    """The guards make these wrong: a zero divisor loses the product, and log adds 0.001."""
    for text in ("(W * X) / X", "(W * X) / G", "log(exp(W))", "W / (-X)"):
        assert simplify(parse(text)) == parse(text)
    zero = {"W": torch.ones(2, 2), "X": torch.tensor([0.0, 1.0])}
    assert not torch.allclose(evaluate(parse("(W * X) / X"), zero), zero["W"])
    small = {"W": torch.full((2, 2), 1e-3)}
    assert not torch.allclose(evaluate(parse("log(exp(W))"), small), small["W"], rtol=1e-2)


def test_float32_values_agree_to_rounding() -> None:
    variables = {k: v.float() for k, v in tensors(3).items()}
    for text in (*KNOWN.values(), "sqrt(sqr(W - X)) + exp(log(G))", "mms(zsn(W * X))"):
        before, after = parse(text), simplify(parse(text))
        torch.testing.assert_close(evaluate(before, variables), evaluate(after, variables), rtol=1e-5, atol=1e-6)


def test_every_primitive_is_reached_by_a_rule_or_needs_none() -> None:
    mentioned = {e.name for rule in RULES for t in rule.patterns for _, e in parse(re.sub(r"\b[AB]\b", "W", t)).walk()}
    assert set(PRIMITIVES) - mentioned == {"tanh", "div_norm"}
    assert simplify(constant(2.0)) == constant(2.0)
