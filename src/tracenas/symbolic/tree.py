"""Expression trees over per-weight tensors: immutable, hashable, as text, infix and JSON. No torch."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tracenas.errors import UserError
from tracenas.registry import did_you_mean

__all__ = ["ALIASES", "ARITY", "DEEPEST", "VARIABLES", "Expression", "Path", "call", "constant", "variable"]

Path = tuple[int, ...]
"""Which argument to take at every step from the root; () is the root itself."""

DEEPEST = 200
"""Nested parts at most: trees are walked recursively."""

VARIABLES = {
    "W": "|weight|",
    "G": "mean over the calibration sequences of |gradient of the loss|",
    "X": "root mean square of the input column",
}

ARITY = {
    "sqr": 1, "neg": 1, "abs": 1, "log": 1, "exp": 1, "sqrt": 1, "tanh": 1, "pow": 1, "skip": 1, "mms": 1, "zsn": 1,
    "add": 2, "sub": 2, "mul": 2, "div": 2, "div_norm": 2,
}  # fmt: skip
"""Arguments of every primitive (`tracenas.symbolic.primitives` says what they compute)."""

ALIASES = {"skp": "skip"}
"""Other names that are read, never written: the published code's."""

_INFIX = {"add": (" + ", 1), "sub": (" - ", 1), "mul": (" * ", 2), "div": (" / ", 2)}


@dataclass(frozen=True)
class Expression:
    """A primitive with its arguments, a variable, or a constant.

    Args:
        name: of the primitive or variable; empty for a constant.
        args: as many as the primitive takes.
        value: of a constant.
    """

    name: str
    args: tuple["Expression", ...] = ()
    value: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.name == "") or len(self.args) != ARITY.get(self.name, 0):
            raise ValueError(f"no expression: {self.name!r} with {len(self.args)} arguments, value {self.value}")
        if self.name and self.name not in ARITY and self.name not in VARIABLES:
            raise ValueError(f"no expression: unknown name {self.name!r}")

    @cached_property
    def nodes(self) -> int:
        """Nodes of the tree: the complexity."""
        return 1 + sum(a.nodes for a in self.args)

    @cached_property
    def depth(self) -> int:
        """Edges from the root to the deepest leaf."""
        return 1 + max(a.depth for a in self.args) if self.args else 0

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names of the variables that are read."""
        return frozenset(e.name for _, e in self.walk() if e.name in VARIABLES)

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, "Expression"]]:
        """Every node with its path, the root first."""
        yield path, self
        for i, arg in enumerate(self.args):
            yield from arg.walk((*path, i))

    def at(self, path: Path) -> "Expression":
        """The sub-expression at a path."""
        return self if not path else self.args[path[0]].at(path[1:])

    def replace(self, path: Path, new: "Expression") -> "Expression":
        """This tree with another sub-expression at a path."""
        if not path:
            return new
        args = list(self.args)
        args[path[0]] = args[path[0]].replace(path[1:], new)
        return Expression(self.name, tuple(args))

    @cached_property
    def text(self) -> str:
        """`mul(abs(W), mms(G))`."""
        if self.value is not None:
            return repr(self.value)
        return f"{self.name}({', '.join(a.text for a in self.args)})" if self.args else self.name

    def __str__(self) -> str:
        return self.text

    @cached_property
    def infix(self) -> str:
        """`abs(W) * mms(G)`; parses to the same tree."""
        if self.name in _INFIX:
            sign, level = _INFIX[self.name]
            left, right = self.args
            return f"{_wrapped(left, level)}{sign}{_wrapped(right, level + 1)}"
        if self.name == "neg":
            return f"-{_wrapped(self.args[0], 3)}"
        return f"{self.name}({', '.join(a.infix for a in self.args)})" if self.args else self.text

    @property
    def id(self) -> str:
        """A short hash of the text, equal in every process."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]

    def to_json(self) -> Any:
        """`{"op": "mul", "args": ["W", …]}`; a variable is its name, a constant a number."""
        if self.value is not None:
            return self.value
        return {"op": self.name, "args": [a.to_json() for a in self.args]} if self.args else self.name

    @classmethod
    def from_json(cls, data: Any, *, where: str = "expression", depth: int = 0) -> "Expression":
        """Read `to_json`'s form, an object that holds one under `tree`, or the published code's tree files.

        The published form is `{"data": "mul", "left": …, "right": …}`; its `div` is our `div_norm`.

        Raises:
            UserError: naming the place in the tree.
        """
        if depth > DEEPEST:
            raise UserError(f"{where[:80]}…: more than {DEEPEST} levels")
        if isinstance(data, Mapping) and "tree" in data:
            return cls.from_json(data["tree"], where=f"{where}: tree", depth=depth + 1)
        if isinstance(data, (int, float)) and not isinstance(data, bool) and abs(data) <= sys.float_info.max:
            return constant(float(data))
        if isinstance(data, str):
            return _named(data, [], where)
        if isinstance(data, Mapping) and set(data) == {"op", "args"} and isinstance(data["args"], list):
            args = [cls.from_json(a, where=f"{where}.args[{i}]", depth=depth + 1) for i, a in enumerate(data["args"])]
            return _named(data["op"], args, where)
        if isinstance(data, Mapping) and "data" in data and set(data) <= {"data", "left", "right"}:
            keys = [k for k in ("left", "right") if k in data]
            args = [cls.from_json(data[k], where=f"{where}.{k}", depth=depth + 1) for k in keys]
            return _named("div_norm" if data["data"] == "div" else data["data"], args, where)
        raise UserError(f"{where}: expected a variable, a number or {{'op', 'args'}}, found {str(data)[:60]}")


def _wrapped(e: Expression, level: int) -> str:
    """Infix text in parentheses where it binds less than `level`."""
    binding = _INFIX[e.name][1] if e.name in _INFIX else 4
    bare_number = e.value is not None and (e.value < 0 or level == 3)
    return f"({e.infix})" if binding < level or (e.name == "neg" and level >= 2) or bare_number else e.infix


def _named(name: Any, args: list[Expression], where: str) -> Expression:
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    if not isinstance(name, str) or (name not in ARITY and name not in VARIABLES):
        raise UserError(f"{where}: unknown name {name!r}: {did_you_mean(str(name), [*ARITY, *VARIABLES])}")
    if len(args) != ARITY.get(name, 0):
        raise UserError(f"{where}: '{name}' takes {ARITY.get(name, 0)} arguments, found {len(args)}")
    return Expression(name, tuple(args))


def variable(name: str) -> Expression:
    """W, G or X."""
    return Expression(name)


def constant(value: float) -> Expression:
    """A number."""
    return Expression("", (), float(value))


def call(name: str, *args: Expression) -> Expression:
    """A primitive with its arguments."""
    return Expression(name, args)
