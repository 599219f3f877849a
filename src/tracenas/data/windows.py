"""How windows of text begin: with the BOS token that the tokenizer puts before every text by itself, or with none.

A window of length L is then the BOS and L - 1 tokens of text. Nothing predicts its first token, so that the BOS is
never scored, and with it every token of the text is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from tracenas.data.packing import refusals
from tracenas.data.sources import is_tokens
from tracenas.data.tokens import load_tokens, noted_bos
from tracenas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["BosRule", "WindowStart", "added_bos", "text_tokens", "token_file_start", "window_start", "with_bos"]

BosRule = Literal["auto", "on", "off"]
"""`auto`: a BOS where the tokenizer adds one by itself."""

_PROBE = "a A 0"


@dataclass(frozen=True)
class WindowStart:
    """How the windows of a source begin.

    Args:
        bos: the token that every one of them begins with; None: none, or a token file that does not say.
        carried: whether they begin with a BOS; None: a token file that does not say.
    """

    bos: int | None = None
    carried: bool | None = None

    @property
    def rule(self) -> BosRule:
        """The rule that leads to such windows again; `auto` for a token file that does not say."""
        return "auto" if self.carried is None else "on" if self.carried else "off"

    @property
    def note(self) -> dict[str, str]:
        """What the metadata of a file of such windows says: `bos`, "true" or "false"."""
        return {} if self.carried is None else {"bos": "true" if self.carried else "false"}

    def __str__(self) -> str:
        """In words, behind `windows of 2048 tokens`."""
        if self.carried is None:
            return "as the token file holds them"
        return "each begins with BOS" if self.carried else "without BOS"


def added_bos(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """The token that the tokenizer puts before every text by itself, None if it puts none.

    Raises:
        UserError: it puts several, or refuses a text.
    """
    with refusals("tokenizer", f"'{_PROBE}', to see whether a BOS is added (bos=off: none)"):
        plain, special = (
            list(tokenizer(_PROBE, add_special_tokens=added, verbose=False)["input_ids"]) for added in (False, True)
        )
    if not plain:  # no token of the probe is in the vocabulary
        return tokenizer.bos_token_id if special and special[0] == tokenizer.bos_token_id else None
    places = range(len(special) - len(plain) + 1)
    before = next((at for at in places if special[at : at + len(plain)] == plain), 0)
    if before > 1:
        names = " ".join(map(str, tokenizer.convert_ids_to_tokens(special[:before])))
        raise UserError(f"the tokenizer puts {before} tokens before every text, {names}: accepted is one, or bos=off")
    return int(special[0]) if before else None


def window_start(
    source: str,
    tokenizer: "PreTrainedTokenizerBase",
    rule: BosRule = "auto",
    *,
    bos: int | Sequence[int] | None = None,
) -> WindowStart:
    """How windows of a source begin under a rule.

    Args:
        source: see `tracenas.data.sources.parse_source`.
        tokenizer: the model's; not used for tokens.
        rule: `on` and `off` whatever the tokenizer does.
        bos: the model config's `bos_token_id`, for tokenizers that add and name none.

    Raises:
        UserError: `on` without a token to begin with; a token file that contradicts the rule.
    """
    if is_tokens(source):
        return token_file_start(source, rule)
    if rule == "off":
        return WindowStart(None, carried=False)
    token = added_bos(tokenizer)
    if rule == "on" and token is None:
        named = tokenizer.bos_token_id
        if named is None:
            named = bos if bos is None or isinstance(bos, int) else next(iter(bos), None)
        if named is None:
            raise UserError("bos on: neither the tokenizer nor config.json names a BOS token")
        token = int(named)
    return WindowStart(token, carried=token is not None)


def token_file_start(path: str | Path, rule: BosRule = "auto") -> WindowStart:
    """How the windows of a token file begin, by its note `bos`; they are used as they are.

    Raises:
        UserError: the note is not the rule's, or not true of the tokens.
    """
    carried = noted_bos(path)
    if rule == "on" and not carried:
        why = "does not say that its windows begin with BOS" if carried is None else "says that its windows have no BOS"
        raise UserError(f"bos on: '{path}' {why} (metadata bos); token ids are used as they are")
    if rule == "off" and carried:
        raise UserError(
            f"bos off: '{path}' says that its windows begin with BOS (metadata bos), and are used as they are"
        )
    if not carried:
        return WindowStart(None, carried)
    first = load_tokens(path)[:, 0]
    if bool((first != first[0]).any()):
        raise UserError(f"'{path}' says that its windows begin with BOS (metadata bos), but they begin differently")
    return WindowStart(int(first[0]), carried=True)


def with_bos(text: torch.Tensor, bos: int | None) -> torch.Tensor:
    """Rows of text [N, T] → windows [N, T + 1] that begin with `bos`; as they are where that is None."""
    return text if bos is None else torch.nn.functional.pad(text, (1, 0), value=bos)


def text_tokens(windows: torch.Tensor, bos: int | None) -> torch.Tensor:
    """Windows [N, L] without the BOS that all of them begin with, if they do."""
    return windows[:, 1:] if bos is not None and bool((windows[:, 0] == bos).all()) else windows
