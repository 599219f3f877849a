"""Settings of latency tables."""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tracenas.config import fields
from tracenas.config.shared import SpaceConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["MeasureConfig"]

_POINT = re.compile(r"([1-9][0-9]*):([1-9][0-9]*):([1-9][0-9]*)")


class MeasureConfig(SpaceConfig):
    """Measure what widths of sub-blocks take where the model is served."""

    wanted = ("backend", "points", "outtype", "turns", "resume", "device")
    uses = (
        Use(("outtype", "llama_python"), "backend llama.cpp", lambda c: c.backend == "llama.cpp"),
        Use(("dtype", "trust_remote_code"), "backend torch, torch-compile or vllm", lambda c: c.backend != "llama.cpp"),
        Use(("vllm_python", "enforce_eager"), "backend vllm", lambda c: c.backend == "vllm"),
    )
    without = ("depth_granularity", "min_depth", "keep_layers", "exclude")

    model: fields.ModelName
    out: Path = Field(description="Table to write, a file with the ending .json.")
    backend: Literal["torch", "torch-compile", "llama.cpp", "vllm"] = Field(
        "torch", description="What the model is served by; llama.cpp through llama-cpp-python."
    )
    outtype: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        "auto", description="What matrices are stored in, as in `tracenas export`; auto: as the model's own weights."
    )
    llama_python: fields.LlamaPython = None
    vllm_python: fields.VllmPython = None
    enforce_eager: fields.EnforceEager = False
    points: fields.CommaList = Field(
        "1:512:512",
        description="How it is served: sequences:prompt:context, several separated by commas. A prefill reads the "
        "prompt, a decoded token attends to the context; the first point is the default of budgets.",
    )
    turns: int = Field(3, ge=1, description="Trials of every width, in turns with the base.")
    new_tokens: int = Field(16, ge=2, description="Tokens decoded per trial.")
    resume: bool = Field(False, description="Go on with an interrupted table.")

    @field_validator("points")
    @classmethod
    def _check_points(cls, text: str) -> str:
        for part in text.split(","):
            if not _POINT.fullmatch(part.strip()):
                raise UserError(f"points '{part.strip()}': expected sequences:prompt:context, such as 1:512:2048")
        return text

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Sequences, prompt and context of every point."""
        found = [tuple(map(int, part.strip().split(":"))) for part in self.points.split(",")]
        return tuple((batch, prompt, context) for batch, prompt, context in dict.fromkeys(found))
