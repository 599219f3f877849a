"""Settings of export."""

from pathlib import Path

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import StageConfig
from tracenas.config.usage import Use
from tracenas.errors import UserError

__all__ = ["ExportConfig"]


class ExportConfig(StageConfig):
    """Write a checkpoint in the form that a serving program reads."""

    without = ("seed", "device", "dtype", "trust_remote_code")
    uses = (
        Use(("check_ids", "llama_python"), "--check", lambda c: c.check),
        Use(("threads",), "--check", lambda c: c.check),
        Use(("pre",), "tokenizer auto", lambda c: c.tokenizer == "auto"),
    )

    model: str = Field(description="Checkpoint directory.")
    format: str = Field("gguf", description="gguf (llama.cpp, Ollama).")
    out: Path = Field(description="File to write.")
    outtype: str = Field("auto", description="Of the matrices: f32, f16, bf16, q8_0; auto: as the checkpoint's.")
    layout: str = Field("auto", description="stock, deci, openelm or padded; auto: the first that holds the model.")
    tokenizer: str = Field("auto", description="auto: the checkpoint's; none: token ids only.")
    pre: str = Field("", description="llama.cpp's name of the pre-tokenizer, where it is not known.")
    check: bool = Field(False, description="Compare llama.cpp's logits with the checkpoint's before the file appears.")
    check_ids: fields.CommaList = Field(
        "", description="Token ids the check reads, such as 1,15,7; default: those of a text."
    )
    llama_python: Path | None = Field(None, description="A Python that has llama-cpp-python; default: this one.")

    @property
    def ids(self) -> tuple[int, ...]:
        """`check_ids` as numbers."""
        try:
            return tuple(int(part) for part in self.check_ids.replace(" ", "").split(",") if part)
        except ValueError as error:
            raise UserError(f"check-ids '{self.check_ids}': expected numbers separated by commas") from error
