"""What a search starts from: architectures in closed form that are scored before any other.

A start is a line here: the allocation that makes it.
"""

from tracenas.errors import UserError
from tracenas.registry import Registry
from tracenas.saliency.allocation import Allocation

__all__ = ["DEFAULT_STARTS", "PUBLISHED_STARTS", "SOLVED", "STARTS", "start_names"]

STARTS: Registry[Allocation] = Registry(
    "start",
    {
        "fisher": "tracenas.saliency.allocation.solver:allocate",
        "mlp": "tracenas.saliency.allocation.mlp:allocate",
        "uniform": "tracenas.saliency.allocation.uniform:allocate",
    },
)

SOLVED = frozenset({"fisher"})
"""Those that read the sensitivity table."""

DEFAULT_STARTS, PUBLISHED_STARTS = ("fisher", "mlp", "uniform"), ("uniform",)
"""Of a search, and of one by a proxy whose paper has a search of its own."""


def start_names(text: str) -> tuple[str, ...]:
    """The names of a list such as `fisher,mlp`, each once.

    Raises:
        UserError: for an unknown one, with a suggestion.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UserError(f"start '{text}': accepted: auto, none, or some of {', '.join(STARTS)}")
    for name in names:
        STARTS.check(name)
    return names
