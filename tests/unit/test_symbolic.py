"""Expressions: text, infix and JSON forms, messages with places, evaluation and its faults."""

import json
import math
from typing import Any

import pytest
import torch
from expressions import expressions
from hypothesis import given, settings
from hypothesis import strategies as st

from tracenas.errors import UserError
from tracenas.symbolic import KNOWN, Expression, locate, parse
from tracenas.symbolic.primitives import PRIMITIVES, evaluate, fault, value_range
from tracenas.symbolic.tree import ARITY


@settings(deadline=None, max_examples=100)
@given(expressions())
def test_text_infix_and_json_give_the_same_tree(expression: Expression) -> None:
    assert parse(expression.text) == expression
    assert parse(expression.infix) == expression
    assert Expression.from_json(json.loads(json.dumps(expression.to_json()))) == expression


def test_infix_has_the_usual_precedence() -> None:
    assert parse("W + X * G").text == "add(W, mul(X, G))"
    assert parse("W - X - G").text == "sub(sub(W, X), G)"
    assert parse("W / (X * G)").text == "div(W, mul(X, G))"
    assert parse("-W * X").text == "mul(neg(W), X)"
    assert parse("|W·W| * mms(G)") == parse("mul(abs(mul(W, W)), mms(G))")
    assert parse("||W| - 2|").text == "abs(sub(abs(W), 2.0))"
    assert parse("skp(W)").text == "skip(W)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("abs(W) * Q", "unknown name 'Q'"),
        ("mul(W)", "'mul' takes 2 arguments, found 1, at column 1"),
        ("W + abs(X, G)", "'abs' takes 1 argument, found 2, at column 5"),
        ("W +", "found the end at column 4"),
        ("W)", "unexpected ')' at column 2"),
        ("(W", "expected ')', found the end at column 3"),
        ("W $ X", "unexpected '$' at column 3"),
        ("", "found nothing at column 1"),
        ("  ", "found nothing at column 1"),
        ("abs W", "expected '(', found 'W' at column 5"),
        ("(" * 300, "nested deeper"),
        ("-" * 300, "nested deeper"),
        ("+".join("W" * 5000), "longer than 400 symbols"),
    ],
)
def test_messages_name_the_column(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_an_unknown_name_gets_a_suggestion_and_its_column() -> None:
    with pytest.raises(UserError, match=r"unknown name 'sqrtt' \(did you mean 'sqrt'.*\) at column 7"):
        parse("W +   sqrtt(X)")


def test_the_published_tree_files_are_read() -> None:
    published = {"data": "div", "left": {"data": "W"}, "right": {"data": "mms", "left": {"data": "G"}}}
    assert Expression.from_json(published).text == "div_norm(W, mms(G))"
    with pytest.raises(UserError, match=r"tree.left: unknown name 'foo'"):
        Expression.from_json({"data": "abs", "left": {"data": "foo"}}, where="tree")


@pytest.mark.parametrize(
    "data", [True, None, [], {"op": "abs"}, math.nan, math.inf, {"op": "mul", "args": ["W"]}, {"op": 3, "args": []}]
)
def test_other_json_is_refused(data: object) -> None:
    with pytest.raises(UserError, match="expression"):
        Expression.from_json(data)


def test_primitives_and_arities_name_the_same() -> None:
    assert set(PRIMITIVES) == set(ARITY)


def layer(rows: int = 5, columns: int = 7, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = {n: torch.rand(rows, columns, generator=generator) for n in "WG"}
    return {**draw, "X": torch.rand(columns, generator=generator)}


def test_values_are_those_of_the_formulas() -> None:
    v = layer()
    w, g, x = v["W"], v["G"], v["X"]
    mms = (g - g.min()) / (g.max() - g.min())
    cases = {
        "abs(W*W) * mms(G)": w * w * mms,
        "W * X": w * x[None, :],
        "log(W - 1)": torch.log((w - 1).abs() + 1e-3),
        "exp(200 * W)": torch.exp((200 * w).clamp(max=80)),
        "div_norm(W, X)": w / x.expand(5, 7).norm(),
        "div(W, X - X)": w / 1e-12,
        "zsn(W)": (w - w.mean()) / w.std(correction=0),
        "sqrt(-W) + tanh(G) + pow(X) + skip(W)": w.sqrt() + g.tanh() + x * x + w,
        "mms(2) + zsn(2) + W": w,
    }
    for text, expected in cases.items():
        torch.testing.assert_close(evaluate(parse(text), v), expected, rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=100)
@given(expressions(3), st.integers(0, 1000))
def test_values_lie_in_the_inferred_range(expression: Expression, seed: int) -> None:
    v = {k: t.double() * 3 for k, t in layer(seed=seed).items()}
    value = evaluate(expression, v)
    low, high = value_range(expression)
    slack = 1e-9 * (1 + value.abs())
    if bool(torch.isfinite(value).all()):
        assert bool((value >= low - slack).all()) and bool((value <= high + slack).all())


def test_a_fault_is_found_where_it_begins() -> None:
    located = locate("W * exp(X - X)")
    assert fault(located.expression, layer()) is None
    located = locate("1 + sqrt(X - X)")
    found = fault(located.expression, layer())
    assert found is not None and located.place(found[0]) == "'X - X' at column 10" and found[1] == "is constant"
    located = locate("W + sqr(exp(60 + W))")
    found = fault(located.expression, layer())
    assert found is not None and located.place(found[0]).startswith("'sqr(exp(") and found[1] == "is not finite"
    located = locate("sqr(exp(60 + W)) - sqr(exp(60 + W))")
    found = fault(located.expression, layer())
    assert found == ((), "yields NaN")


def test_known_metrics_parse() -> None:
    assert parse(KNOWN["wanda"]).variables == {"W", "X"}
    assert {name: parse(text).nodes for name, text in KNOWN.items()}["magnitude"] == 2


@pytest.mark.parametrize("key", ["tree", "args"])
def test_a_tree_of_too_many_levels_is_refused(key: str) -> None:
    data: Any = "W"
    for _ in range(300):
        data = {"tree": data} if key == "tree" else {"op": "sqrt", "args": [data]}
    with pytest.raises(UserError, match="more than 200 levels"):
        Expression.from_json(data)


def test_a_number_that_no_float_can_hold_is_refused() -> None:
    with pytest.raises(UserError, match="expected a variable, a number"):
        Expression.from_json(10**400)
