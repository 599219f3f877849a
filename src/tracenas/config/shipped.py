"""Settings of what comes with the package: recipes and the demo."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import StageConfig
from tracenas.config.usage import Use

__all__ = ["DemoConfig", "RecipesConfig"]


class RecipesConfig(StageConfig):
    """The settings files that come with the package."""

    without = ("seed", "device", "dtype", "threads", "trust_remote_code")


class DemoConfig(StageConfig):
    """The main job on the model and text that ship in the package, or on a published model."""

    wanted = ("model", "out", "params", "minutes", "resume")
    without = ("trust_remote_code",)
    uses = (Use(("minutes",), "model smollm2", lambda c: c.model == "smollm2"),)

    model: Literal["built-in", "smollm2"] = Field(
        "built-in",
        description="The model: the one in the package, or SmolLM2-135M-Instruct, of which 93 MB are downloaded.",
    )
    out: Path | None = Field(
        None, description="Directory of the run; default: tracenas-demo, or tracenas-demo-smollm2."
    )
    params: fields.Size | None = Field(
        None, description="Budget for all parameters: a share or a number; default: 60%, of smollm2 75%."
    )
    minutes: float = Field(
        30,
        gt=0,
        description="Minutes that the demo of smollm2 may take; where this machine needs longer, it does less.",
    )
    resume: bool = Field(False, description="Go on with an interrupted demo in the directory.")
