"""Types of settings that several commands have, with their descriptions."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tracenas.dtypes import short_name

__all__ = [
    "CommaList",
    "Dtype",
    "ModelName",
    "Proxy",
    "Rank",
    "ShardSize",
    "Switch",
    "TextField",
    "Tolerance",
]

Dtype = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    BeforeValidator(lambda value: short_name(value) if isinstance(value, str) else value),
]
"""A dtype's name, ours or torch's; kept as ours."""

Switch = Annotated[
    Literal["auto", "on", "off"],
    BeforeValidator(lambda value: {True: "on", False: "off"}[value] if isinstance(value, bool) else value),
]
"""YAML reads `on` and `off` as true and false."""


CommaList = Annotated[
    str, BeforeValidator(lambda value: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value)
]
"""Several values separated by commas; YAML may hold a list."""

ModelName = Annotated[str, Field(description="Model directory, .gguf file or hub id.")]
TextField = Annotated[str | None, Field(description="Field of JSONL, CSV, Parquet or hub data that holds the text.")]
Tolerance = Annotated[float, Field(gt=0, lt=1, description="Depth of the budget window, relative.")]
ShardSize = Annotated[str, Field(description="Largest weights file.")]
Rank = Annotated[str, Field(description="Rank of the gradient traces, or full.")]
Proxy = Annotated[
    str,
    Field(
        description="What candidates are scored by: a proxy, NAME=WEIGHT,…, or auto: loss_compensated (phi for "
        "encoder-decoder models)."
    ),
]
"""Fields that several commands have."""
