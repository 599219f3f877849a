"""Types of settings that several commands have, with their descriptions."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tracenas.config.accepted import Accepts
from tracenas.dtypes import short_name
from tracenas.formats import parse_bytes
from tracenas.proxies import PROXIES

__all__ = [
    "CommaList",
    "Compensate",
    "DeviceMemory",
    "Dtype",
    "EnforceEager",
    "HostMemory",
    "LlamaPython",
    "ModelName",
    "Proxies",
    "Proxy",
    "Rank",
    "Ray",
    "SaveDtype",
    "ShardSize",
    "Size",
    "Sparsity",
    "Switch",
    "Text",
    "TextField",
    "Threads",
    "Tolerance",
    "VllmPython",
    "Workers",
]


def _amount(text: str) -> str:
    if text != "auto" and not parse_bytes(text):
        raise ValueError("expected auto, or an amount of memory such as 3.5GB or 12GiB")
    return text


def _shard(text: str) -> str:
    if not re.fullmatch(r"[0-9.]+ *[KMGT]B", text.strip(), re.ASCII | re.IGNORECASE) or not parse_bytes(text):
        raise ValueError("expected a size with its unit, KB, MB, GB or TB, such as 5GB")
    return text


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

Compensate = Literal["best", "auto", "none", "ridge", "sequential"]
"""How output projections are refitted."""

Text = Annotated[str, Accepts(file=True, metavar="TEXT")]
"""A file, a data set's name, …"""

Ray = Annotated[str, Accepts(("auto",))]
"""HOST:PORT of a cluster, or the one at hand."""

Threads = Annotated[int, Field(ge=1, le=4096)]
"""CPU threads; more than that no machine has, and libraries end the process."""

Workers = Annotated[int, Field(ge=1)] | Literal["auto"]
"""A number of processes."""

Size = Annotated[str, Accepts(metavar="SIZE")]
"""A share such as 60%, or a size such as 2.7B."""

Sparsity = Annotated[str, Accepts(metavar="SHARE|N:M")]
"""A share of zeros in [0, 1), or N:M such as 2:4."""

Proxies = Annotated[str, Accepts(("auto",), PROXIES.names, several=True)]

ModelName = Annotated[
    str,
    Accepts(file=True),
    Field(description="The model: a directory, a .gguf file, or ORGANISATION/NAME[@REVISION] on the hub."),
]
HostMemory = Annotated[
    str,
    Accepts(("auto",), metavar="SIZE"),
    AfterValidator(_amount),
    Field(
        description="Memory that this command may take beside mapped files, such as 3.5GB; weights and factors that do "
        "not fit wait in temporary files. auto: what this machine has."
    ),
]
DeviceMemory = Annotated[
    str,
    Accepts(("auto",), metavar="SIZE"),
    AfterValidator(_amount),
    Field(
        description="Memory of a GPU that this command may take, such as 20GiB; where the model does not fit, its "
        "blocks wait in host memory and are copied to the GPU one after the other. auto: what is free there."
    ),
]
LlamaPython = Annotated[
    Path | None, Field(description="Python interpreter that has llama-cpp-python; default: this one.")
]
VllmPython = Annotated[Path | None, Field(description="Python interpreter that has vLLM; default: this one.")]
EnforceEager = Annotated[
    bool, Field(description="Run vLLM without torch.compile and CUDA graphs, as `vllm serve --enforce-eager`.")
]
TextField = Annotated[
    str | None,
    Field(description="Name of the field that holds the text; for JSONL, CSV, Parquet and hub data. Default: text."),
]
Tolerance = Annotated[
    float, Field(gt=0, lt=1, description="How far below the budget the result may be, as a share of the budget.")
]
ShardSize = Annotated[
    str,
    Accepts(metavar="SIZE"),
    AfterValidator(_shard),
    Field(description="Largest size of one weights file, with its unit: KB, MB, GB or TB."),
]
SaveDtype = Annotated[
    Dtype, Field(description="Number format of the written weights; auto: of each as it is stored in the input.")
]
Rank = Annotated[
    str,
    Accepts(("full",), metavar="N|full"),
    Field(description="Rank of the gradient traces that phi compares; full: the traces themselves."),
]
Proxy = Annotated[
    Proxies,
    Field(
        description="What candidates are scored by: a proxy, or a weighted sum NAME=WEIGHT,…; auto: loss_compensated "
        "(phi for encoder-decoder models)."
    ),
]
"""Fields that several commands have."""
