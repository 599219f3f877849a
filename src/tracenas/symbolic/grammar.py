"""Random expressions and their variation: grow and full trees, sub-tree crossover, mutation (Pruner-Zero §3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracenas.errors import UserError
from tracenas.registry import did_you_mean
from tracenas.symbolic.simplify import simplify
from tracenas.symbolic.tree import ARITY, VARIABLES, Expression, Path, call, variable

__all__ = ["ExpressionSpace", "Program"]

_SHORTEST = 2
"""Initial trees are at least this deep."""


@dataclass(frozen=True)
class Program:
    """A simplified expression as a search candidate."""

    expression: Expression

    @property
    def id(self) -> str:
        """Hash of the canonical text: the cache key."""
        return self.expression.id

    def to_json(self) -> dict[str, Any]:
        """What the journal records."""
        return {"metric": self.expression.infix, "tree": self.expression.to_json()}


@dataclass(frozen=True)
class ExpressionSpace:
    """Expressions up to a complexity; fulfils `tracenas.strategies.Space`.

    Args:
        variables: that may be read, some of W, G, X.
        max_nodes: of the simplified tree.
        initial_depth: deepest initial tree.

    Raises:
        UserError: for unknown variables or an impossible limit.
    """

    variables: tuple[str, ...] = ("G", "W", "X")
    max_nodes: int = 20
    initial_depth: int = 4

    def __post_init__(self) -> None:
        for name in self.variables:
            if name not in VARIABLES:
                raise UserError(f"variable '{name}': {did_you_mean(name, list(VARIABLES))}")
        if not self.variables:
            raise UserError("variables: name at least one of W, G, X")
        if self.max_nodes < 2 or self.initial_depth < _SHORTEST:
            raise UserError(f"max-nodes must be at least 2 and initial-depth at least {_SHORTEST}")

    # --- what `tracenas.strategies.Space` asks for ----------------------------------------------------

    def uniform(self) -> Program | None:
        """There is none."""
        return None

    def profile(self, ratios: Sequence[Sequence[float]], drop_order: Sequence[int] | None = None) -> Program | None:
        """There is none."""
        return None

    def sample(self, rng: np.random.Generator) -> Program | None:
        """A random tree of depth 2 to `initial_depth`, grow or full with equal probability."""
        depth = int(rng.integers(_SHORTEST, self.initial_depth + 1))
        return self.repair(Program(self._tree(rng, depth, grow=bool(rng.random() < 0.5))), rng)

    def crossover(self, a: Program, b: Program, rng: np.random.Generator) -> Program:
        """A random sub-tree of `a` replaced by a random sub-tree of `b`."""
        path, _ = _pick(a.expression, rng)
        _, donor = _pick(b.expression, rng)
        return Program(a.expression.replace(path, donor))

    def mutate(
        self, arch: Program, rng: np.random.Generator, *, depth: float = 0.0, width: float = 1.0, sigma: float = 0.0
    ) -> Program:
        """With probability `width`: a node renamed, a sub-tree redrawn, an operation inserted, or one removed."""
        if rng.random() >= width:
            return arch
        path, node = _pick(arch.expression, rng)
        kind = rng.choice(4, p=[0.4, 0.3, 0.15, 0.15])
        if kind == 0:
            new = self._renamed(node, rng)
        elif kind == 1:
            new = self._tree(rng, int(rng.integers(0, 3)), grow=True, at=_SHORTEST)
        elif kind == 2:
            new = call(_choice(_names(1), rng), node)
        else:
            new = node.args[int(rng.integers(len(node.args)))] if node.args else self._leaf(rng)
        return Program(arch.expression.replace(path, new))

    def repair(self, arch: Program, rng: np.random.Generator) -> Program | None:
        """The simplified program; None if it is too large or reads no variable."""
        expression = simplify(arch.expression)
        return Program(expression) if expression.variables and expression.nodes <= self.max_nodes else None

    def parameters(self, arch: Program) -> int:
        """Its complexity: nodes."""
        return arch.expression.nodes

    def ratios(self, arch: Program) -> Sequence[Sequence[float]]:
        """Its complexity as a share of the limit."""
        return ((arch.expression.nodes / self.max_nodes,),)

    # --- trees ------------------------------------------------------------------------------------

    def _leaf(self, rng: np.random.Generator) -> Expression:
        return variable(_choice(self.variables, rng))

    def _tree(self, rng: np.random.Generator, depth: int, *, grow: bool, at: int = 0) -> Expression:
        """A tree of at most (full: exactly) `depth` more levels; `at`: levels above it."""
        if depth == 0 or (grow and at >= _SHORTEST and rng.random() < 0.5):
            return self._leaf(rng)
        name = _choice(tuple(ARITY), rng)
        return call(name, *(self._tree(rng, depth - 1, grow=grow, at=at + 1) for _ in range(ARITY[name])))

    def _renamed(self, node: Expression, rng: np.random.Generator) -> Expression:
        if not node.args:
            return self._leaf(rng)
        return call(_choice(_names(len(node.args)), rng), *node.args)


def _names(arity: int) -> tuple[str, ...]:
    return tuple(n for n, count in ARITY.items() if count == arity)


def _choice(names: Sequence[str], rng: np.random.Generator) -> str:
    return names[int(rng.integers(len(names)))]


def _pick(e: Expression, rng: np.random.Generator) -> tuple[Path, Expression]:
    """A node, all with the same probability."""
    nodes = list(e.walk())
    return nodes[int(rng.integers(len(nodes)))]
