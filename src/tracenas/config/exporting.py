"""Settings of export."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import StageConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError
from tracenas.exporters.gguf.export import OUTTYPES
from tracenas.exporters.gguf.layouts import LAYOUTS

__all__ = ["ExportConfig"]


class ExportConfig(StageConfig):
    """Write a checkpoint in the form that a serving program reads."""

    wanted = ("outtype", "check", "layout")
    without = ("seed", "device", "dtype", "trust_remote_code")
    uses = (
        Use(("check_ids", "llama_python"), "--check", lambda c: c.check),
        Use(("threads",), "--check", lambda c: c.check),
        Use(("pre",), "tokenizer auto", lambda c: c.tokenizer == "auto"),
    )

    model: Annotated[str, Accepts(file=True)] = Field(
        description="The checkpoint: a directory, or ORGANISATION/NAME[@REVISION] on the hub."
    )
    format: Literal["gguf"] = Field("gguf", description="Format of the file: gguf is for llama.cpp and Ollama.")
    out: Path = Field(description="File to write.")
    outtype: Annotated[str, Accepts(OUTTYPES)] = Field(
        "auto", description="Number format of the matrices; auto: as in the checkpoint."
    )
    layout: Annotated[str, Accepts(("auto",), LAYOUTS.names)] = Field(
        "auto", description="How layers of different shapes are laid out; auto: the first layout that holds the model."
    )
    tokenizer: Literal["auto", "none"] = Field(
        "auto", description="Tokenizer in the file: the checkpoint's (auto), or none, for token ids alone."
    )
    pre: str = Field("", description="Name of the pre-tokenizer in llama.cpp, where tracenas does not know it.")
    check: bool = Field(
        False, description="Compare llama.cpp's logits with the checkpoint's, and write no file that differs."
    )
    check_ids: Annotated[fields.CommaList, Accepts(metavar="N", several=True)] = Field(
        "", description="Token ids that the check reads, such as 1,15,7; default: those of a text."
    )
    llama_python: fields.LlamaPython = None

    @property
    def ids(self) -> tuple[int, ...]:
        """`check_ids` as numbers."""
        try:
            return tuple(int(part) for part in self.check_ids.replace(" ", "").split(",") if part)
        except ValueError as error:
            raise UserError(f"check-ids '{self.check_ids}': expected numbers separated by commas") from error
