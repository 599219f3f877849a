"""Settings of budgets: what an architecture may cost, several costs at once, and how the model is to be served."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
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


def _any_reads(setting: str) -> Callable[[Any], bool]:
    def reads(config: Any) -> bool:
        return config.says_all or any(setting in BUDGETS.get(name).reads for name in config.budgets)

    return reads


def _names_that_read(setting: str) -> str:
    return "a budget of " + ", ".join(name for name in sorted(BUDGETS) if setting in BUDGETS.get(name).reads)


class BudgetConfig(SpaceConfig):
    """Budgets and what serves the result."""

    uses: ClassVar[tuple[Use, ...]] = (
        *(Use((name,), _names_that_read(name), _any_reads(name)) for name in ("context", "serve_batch", "outtype")),
        Use(("latency",), _names_that_read("latency"), lambda c: c.keeps_latency or _any_reads("latency")(c)),
        Use(("latency_anyway", "prompt"), "latency", lambda c: c.says_all or c.latency is not None),
    )
    keeps_latency: ClassVar[bool] = False
    """Whether a latency table is of use without a budget of milliseconds."""

    @property
    def says_all(self) -> bool:
        """Whether costs are said that no budget is of: how the model is served is of use without one."""
        return self.keeps_latency and self.latency is not None

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
        description="Tokens of a sequence for which flops, memory and decode_ms are counted; default: those of the "
        "latency table, or 4096, or the model's positions if fewer.",
    )
    serve_batch: int | None = Field(
        None,
        ge=1,
        description="Sequences at once for which memory, prefill_ms and decode_ms are counted; default: those of the "
        "latency table, or 1.",
    )
    latency: Path | None = Field(
        None, description="Table that `tracenas measure` wrote, by which prefill_ms and decode_ms are counted."
    )
    latency_anyway: bool = Field(
        False,
        description="Take a latency table of another model, machine or dtype, or one that is off by more than 10 %.",
    )
    prompt: int | None = Field(
        None,
        ge=1,
        description="Tokens that a prefill reads; default: those of the latency table's first point with the context "
        "and the sequences that are asked for.",
    )
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
            listed = values.get("costs") if values.get("front") else None
            names += [name.strip() for name in listed.split(",")] if isinstance(listed, str) else listed or []
            if any(name in BUDGETS and BUDGETS.get(name).caches for name in names):
                return {**values, "kv_groups": True}
        return values
