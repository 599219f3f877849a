"""`tracenas metric show`: an expression parsed and simplified."""

from dataclasses import dataclass
from typing import Any

from tracenas.config import MetricShowConfig
from tracenas.reporting.terminal import Outcome, Table
from tracenas.symbolic import KNOWN, VARIABLES, Expression, locate
from tracenas.symbolic.reading import located_expression

__all__ = ["MetricShown", "show"]


@dataclass(frozen=True)
class MetricShown(Outcome):
    """An expression in all its forms."""

    expression: Expression
    canonical: Expression

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        e, c = self.expression, self.canonical
        return {
            "metric": e.text,
            "infix": e.infix,
            "canonical": c.text,
            "id": c.id,
            "nodes": e.nodes,
            "depth": e.depth,
            "reads": sorted(e.variables),
            "tree": e.to_json(),
        }

    def tables(self) -> list[Table]:
        """The forms."""
        facts = self.to_json()
        reads = ", ".join(f"{v} ({VARIABLES[v]})" for v in facts.pop("reads"))
        facts.pop("tree")
        return [Table("", ("", "value"), [(k, str(v)) for k, v in facts.items()] + [("reads", reads)])]


def show(config: MetricShowConfig) -> MetricShown:
    """Parse and simplify an expression.

    Raises:
        UserError: naming the column of what is wrong.
    """
    from tracenas.symbolic.simplify import simplify

    text = KNOWN.get(config.metric, config.metric)
    located = locate(text) if config.metric in KNOWN else located_expression(text)
    return MetricShown(located.expression, simplify(located.expression))
