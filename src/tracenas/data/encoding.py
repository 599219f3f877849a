"""How a model reads text: its tokenizer, the tokens around documents, and where the text stands in rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracenas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["TextEncoding"]


@dataclass(frozen=True)
class TextEncoding:
    """What every reader of text needs beside the text.

    Args:
        tokenizer: the model's; not used for token ids.
        eos: the model config's `eos_token_id`, for tokenizers that name none.
        bos: the first token of every window, one of its tokens (`tracenas.data.windows`), or of every document where
            these are packed for training; None: no such.
        vocab_size: the model's; ids must be below it; None: that is not checked.
        text_field: the field of JSON lines, CSV, Parquet and hub data sets that holds the text.
    """

    tokenizer: "PreTrainedTokenizerBase"
    eos: int | Sequence[int] | None = None
    bos: int | None = None
    vocab_size: int | None = None
    text_field: str | None = None

    @property
    def end(self) -> int:
        """The token that ends documents: the tokenizer's, else the configuration's, the first if there are several.

        Raises:
            UserError: neither is known.
        """
        token = self.tokenizer.eos_token_id
        if token is None:
            token = self.eos if self.eos is None or isinstance(self.eos, int) else next(iter(self.eos), None)
        if token is None:
            raise UserError(
                "the tokenizer has no EOS token to join documents with, nor has the model's config: "
                "set 'eos_token' in tokenizer_config.json or 'eos_token_id' in config.json"
            )
        return int(token)
