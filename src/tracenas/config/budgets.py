"""Settings of budgets: what an architecture may cost, several costs at once, and how the model is to be served."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from tracenas.budgets import BUDGETS
from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import SpaceConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["BudgetConfig", "named_budgets"]

_NEXT = re.compile(r",(?=\s*\w+\s*=)")
"""Between budgets in one text; `2,700,000` stays whole."""


def _listed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return tuple(f"{name}={limit}" for name, limit in value.items())
    texts = (value,) if isinstance(value, str) else value
    if isinstance(texts, (list, tuple)) and all(isinstance(text, str) for text in texts):
        return tuple(part.strip() for text in texts for part in _NEXT.split(text) if part.strip())
    return value


Budgets = Annotated[
    tuple[str, ...],
    BeforeValidator(_listed),
    Accepts(registered=lambda: (f"{name}=" for name in BUDGETS), metavar="NAME=VALUE"),
]


def named_budgets(texts: tuple[str, ...], params: str | None = None) -> dict[str, str]:
    """`("params=60%", "kv_cache=70%")` by name, `params` first.

    Raises:
        UserError: for what is no such text, an unknown name, and one that is given twice.
    """
    found = {} if params is None else {"params": params}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not value:
            raise UserError(f"budget '{text}': expected NAME=VALUE, such as params=60% or memory=6GiB")
        BUDGETS.check(name)
        if name in found:
            raise UserError(f"budget {name} is given twice, as {found[name]} and as {value}; leave one of them out")
        found[name] = value
    return found


def _any_reads(setting: str) -> Any:
    return lambda config: any(setting in BUDGETS.get(name).reads for name in config.budgets)


def _names_that_read(setting: str) -> str:
    return "a budget of " + ", ".join(name for name in sorted(BUDGETS) if setting in BUDGETS.get(name).reads)


class BudgetConfig(SpaceConfig):
    """Budgets and what serves the result."""

    uses: ClassVar[tuple[Use, ...]] = tuple(
        Use((setting,), _names_that_read(setting), _any_reads(setting))
        for setting in ("context", "serve_batch", "outtype")
    )

    params: fields.Size | None = Field(
        None, description="Budget for all parameters: a share of the model's such as 60%, or a number such as 2.7B."
    )
    budget: Budgets = Field(
        (),
        description="A budget, as a share of the model's own or an absolute value with its unit: params=60%, "
        "kv_cache=70%, memory=6GiB, …; may be given several times, and all are met.",
    )
    tolerance: fields.Tolerance = 0.01
    context: int | None = Field(
        None,
        ge=1,
        description="Tokens of a sequence for which flops and memory are counted; default: 4096, or the model's "
        "positions if fewer.",
    )
    serve_batch: int = Field(1, ge=1, description="Sequences at once for which memory is counted.")
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        "auto",
        description="What matrices are stored in where kv_cache, memory and file are counted, as in `tracenas "
        "export`; auto: as the model's are.",
    )

    @property
    def budgets(self) -> dict[str, str]:
        """All of them by name, as they were given.

        Raises:
            UserError: as `named_budgets`.
        """
        return named_budgets(self.budget, self.params)

    @property
    def leading(self) -> str | None:
        """The budget that stands first whichever binds; None: the one that binds."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _units_of_the_cache(cls, values: Any) -> Any:
        """Where the KV cache counts, whole KV groups are attention's units, unless something else is asked for."""
        given = _listed(values.get("budget") or ()) if isinstance(values, dict) else ()
        if isinstance(given, tuple) and "kv_groups" not in values:
            names = [*named_budgets(tuple(text for text in given if isinstance(text, str)))]
            names += [values["costs"]] if values.get("front") and values.get("costs") in BUDGETS else []
            if any(BUDGETS.get(name).caches for name in names):
                return {**values, "kv_groups": True}
        return values
