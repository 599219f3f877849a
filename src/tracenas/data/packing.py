"""Documents → windows of a fixed length: tokenised, joined by EOS, packed without padding.

Shapes: T tokens of a document, L tokens of a window.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracenas.errors import UserError, catchable, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Packed", "encode", "interleave", "pack", "pieces", "refusals"]

_PIECE = 4_000_000
"""Characters tokenised at once; tokenizers take some hundred bytes per token while they work."""

_BATCH = 64
"""Documents tokenised at once at most."""

_BATCH_CHARACTERS = 1_000_000
"""Characters of a batch at most: the first windows should not wait for what nobody will ask for."""


class Packed(NamedTuple):
    """One window.

    Attributes:
        input_ids: [L] int64.
        position_ids: [L] int64, 0 at the start of the window and of each document in it. Given to a model
            without an attention mask, they keep its documents from seeing each other.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]


def encode(documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> Iterator[NDArray[np.int64]]:
    """Each document's token ids, [T] int64, without special tokens.

    A document of more than four million characters is tokenised in pieces, cut at the end of a line or word.

    Raises:
        UserError: the tokenizer refuses a document; says which.
    """
    for batch in _batches(documents):
        parts = [pieces(document, _PIECE) for document in batch]
        try:
            encoded = iter(_token_ids([part for document in parts for part in document], tokenizer))
        except Exception:
            for text, document in zip(batch, parts, strict=True):
                with refusals("tokenizer", getattr(text, "where", f"text {text[:40]!r}")):
                    _token_ids(document, tokenizer)
            raise
        for document in parts:
            yield np.concatenate([next(encoded) for _ in document])


@contextmanager
def refusals(what: str, where: str) -> Iterator[None]:
    """Whatever the code of a tokenizer or chat template raises becomes one line that names the row."""
    try:
        with catchable():
            yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: the {what} refuses it: {first_line(error)[:300]}") from error


def pieces(text: str, size: int) -> list[str]:
    """Cut a text after at most `size` characters, at the end of a line or word where there is one."""
    parts = []
    at = 0
    while len(text) - at > size:
        cut = max(text.rfind("\n", at, at + size), text.rfind(" ", at, at + size)) + 1
        end = cut if cut > at else at + size
        parts.append(text[at:end])
        at = end
    return [*parts, text[at:]]


def pack(
    documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase", seq_len: int, *, eos: int, bos: int | None = None
) -> Iterator[Packed]:
    """Documents joined by EOS, cut into windows of `seq_len` tokens; a last partial window is dropped.

    Args:
        documents: read no further than the windows that are asked for need.
        tokenizer: called without special tokens.
        seq_len: L, the tokens of a window.
        eos: put after every document.
        bos: put before every document that does not begin with it; None: nothing is.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len must be at least 1, not {seq_len}")
    rest = np.empty(0, dtype=np.int64)
    rest_starts = np.empty(0, dtype=np.bool_)
    end = np.array([eos], dtype=np.int64)
    for ids in encode(documents, tokenizer):
        if not len(ids):
            continue
        if bos is not None and ids[0] != bos:
            ids = np.concatenate([[bos], ids])
        starts = np.zeros(len(ids) + 1, dtype=np.bool_)
        starts[0] = True
        tokens = np.concatenate([rest, ids, end])
        starts = np.concatenate([rest_starts, starts])
        full = len(tokens) // seq_len * seq_len
        for at in range(0, full, seq_len):
            window = slice(at, at + seq_len)
            yield Packed(tokens[window].copy(), _positions(starts[window]))
        rest, rest_starts = tokens[full:], starts[full:]


def interleave(streams: Sequence[Iterator[Packed]], weights: Sequence[float]) -> Iterator[Packed]:
    """Windows of several sources in proportion to their weights, which are shares of the tokens.

    The next window is the one of the source that is furthest behind its share (the first of several), so
    that the order depends on nothing else, and the shares hold at any point, to the window. It ends when the
    source whose turn it is has no more windows.
    """
    if len(streams) != len(weights) or not streams or min(weights) <= 0:
        raise ValueError(f"{len(streams)} streams need as many positive weights, not {list(weights)}")
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    taken = np.zeros(len(streams))
    while True:
        source = int(np.argmax(shares * (taken.sum() + 1) - taken))
        window = next(streams[source], None)
        if window is None:
            return
        taken[source] += 1
        yield window


def _positions(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    places = np.arange(len(starts), dtype=np.int64)
    return places - np.maximum.accumulate(np.where(starts, places, 0))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if len(batch) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@catchable()
def _token_ids(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[NDArray[np.int64]]:
    # verbose=False: no warning that a text is longer than the model's window, which is what packing is for.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [np.asarray(ids, dtype=np.int64) for ids in encoded["input_ids"]]
