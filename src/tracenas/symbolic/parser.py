"""Reading expressions as people write them: `mul(abs(W), mms(G))`, `|W| * mms(G)`, with places for messages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tracenas.errors import UserError
from tracenas.registry import did_you_mean
from tracenas.symbolic.tree import ALIASES, ARITY, DEEPEST, VARIABLES, Expression, Path, call, constant, variable

__all__ = ["Located", "locate", "parse"]

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(.))", re.DOTALL)
_BINARY = {"+": ("add", 1), "-": ("sub", 1), "*": ("mul", 2), "·": ("mul", 2), "⊙": ("mul", 2), "/": ("div", 2)}
_LONGEST = 400
"""Symbols at most."""


@dataclass(frozen=True)
class Located:
    """An expression and where its parts stand in the text.

    Args:
        spans: path → (first, behind the last) character.
    """

    expression: Expression
    text: str
    spans: Mapping[Path, tuple[int, int]]

    def place(self, path: Path) -> str:
        """`'exp(X)' at column 7`."""
        start, end = self.spans.get(path, (0, len(self.text)))
        return f"'{self.text[start:end]}' at column {start + 1}"


def parse(text: str) -> Expression:
    """The expression of a text.

    Grammar: variables W, G, X; numbers; `name(arguments)`; + - * / with the usual precedence; unary minus;
    parentheses; `|x|` for abs(x).

    Raises:
        UserError: naming the column of what is wrong.
    """
    return locate(text).expression


def locate(text: str) -> Located:
    """`parse`, with the places of all parts."""
    return _Parser(text).run()


@dataclass(frozen=True)
class _Part:
    """A parsed part and the spans of everything in it."""

    expression: Expression
    start: int
    end: int
    inner: dict[Path, tuple[int, int]]


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str, int]] = []
        end = len(text.rstrip())
        place = 0
        while place < end:
            match = _TOKEN.match(text, place)
            assert match is not None  # the last group takes any character
            kind = ("number", "name", "sign")[(match.lastindex or 1) - 1]
            self.tokens.append((kind, match.group(match.lastindex or 1), match.start(match.lastindex or 1)))
            place = match.end()
        self.tokens.append(("end", "", end))
        self.next = 0

    def run(self) -> Located:
        if len(self.tokens) > _LONGEST:
            raise UserError(f"metric '{self.text[:40]}…': longer than {_LONGEST} symbols")
        if len(self.tokens) == 1:
            raise self._error("expected an expression, found nothing", 0)
        part = self._sum(0)
        kind, token, place = self.tokens[self.next]
        if kind != "end":
            raise self._error(f"unexpected '{token}'", place)
        return Located(part.expression, self.text, part.inner)

    def _error(self, what: str, place: int) -> UserError:
        return UserError(f"metric '{self.text}': {what} at column {place + 1}")

    def _take(self) -> tuple[str, str, int]:
        self.next += 1
        return self.tokens[self.next - 1]

    def _expect(self, sign: str) -> int:
        kind, token, place = self._take()
        if kind != "sign" or token != sign:
            raise self._error(f"expected '{sign}', found {repr(token) if token else 'the end'}", place)
        return place + 1

    def _sum(self, nesting: int, level: int = 1) -> _Part:
        """Left-associative operators of at least `level`."""
        if nesting > DEEPEST:
            raise self._error(f"nested deeper than {DEEPEST}", self.tokens[self.next][2])
        left = self._sum(nesting + 1, 2) if level == 1 else self._factor(nesting)
        while (operator := _BINARY.get(self.tokens[self.next][1])) and operator[1] == level:
            self.next += 1
            right = self._sum(nesting + 1, 2) if level == 1 else self._factor(nesting)
            left = _join(call(operator[0], left.expression, right.expression), left.start, right.end, left, right)
        return left

    def _factor(self, nesting: int) -> _Part:
        kind, token, place = self._take()
        if token == "-" and kind == "sign":
            following, number, _ = self.tokens[self.next]
            inner = self._factor(nesting + 1) if nesting < DEEPEST else self._sum(nesting + 1)
            if following == "number":
                return _join(constant(-float(number)), place, inner.end)
            return _join(call("neg", inner.expression), place, inner.end, inner)
        if token in ("(", "|") and kind == "sign":
            inner = self._sum(nesting + 1)
            end = self._expect(")" if token == "(" else "|")
            if token == "(":
                return _Part(inner.expression, place, end, inner.inner)
            return _join(call("abs", inner.expression), place, end, inner)
        if kind == "number":
            return _join(constant(float(token)), place, place + len(token))
        if kind == "name":
            return self._name(ALIASES.get(token, token), token, place, nesting)
        raise self._error(f"expected a value, found {repr(token) if token else 'the end'}", place)

    def _name(self, name: str, written: str, place: int, nesting: int) -> _Part:
        if name in VARIABLES:
            return _join(variable(name), place, place + len(written))
        if name not in ARITY:
            raise self._error(f"unknown name '{written}' ({did_you_mean(written, [*ARITY, *VARIABLES])})", place)
        self._expect("(")
        args: list[_Part] = []
        while not args or self.tokens[self.next][1] == ",":
            if args:
                self.next += 1
            elif self.tokens[self.next][1] == ")":
                break
            args.append(self._sum(nesting + 1))
        end = self._expect(")")
        if len(args) != ARITY[name]:
            arguments = "argument" if ARITY[name] == 1 else "arguments"
            raise self._error(f"'{name}' takes {ARITY[name]} {arguments}, found {len(args)},", place)
        return _join(call(name, *(a.expression for a in args)), place, end, *args)


def _join(expression: Expression, start: int, end: int, *args: _Part) -> _Part:
    spans: dict[Path, tuple[int, int]] = {(): (start, end)}
    for i, arg in enumerate(args):
        spans |= {(i, *path): span for path, span in arg.inner.items()}
    return _Part(expression, start, end, spans)
