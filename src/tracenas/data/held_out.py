"""Held-out text in fixed windows, for perplexity."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from tracenas.data import hub
from tracenas.data.encoding import TextEncoding
from tracenas.data.packing import encode
from tracenas.data.sources import documents, is_tokens, parse_source
from tracenas.data.tokens import check_vocabulary, load_tokens
from tracenas.data.windows import with_bos
from tracenas.errors import UserError

__all__ = ["windows"]


def windows(
    source: str | Path,
    encoding: TextEncoding,
    seq_len: int,
    *,
    limit: int | None = None,
    use: Literal["validation", "held_out"] = "held_out",
) -> torch.Tensor:
    """The whole of a text in non-overlapping windows, [N, L] int64.

    The protocol: documents in their order, no special tokens but one EOS between two documents (in a text
    file, where `<|endoftext|>` stands), and BOS before every window; the tokens cut every `seq_len`; a last
    partial window is dropped unless it is the only one (then L is its length). `wikitext2` is its test split, the
    rows joined by blank lines, as is usual in the literature on pruning; other known data sets are their
    evaluation split, too, unless one is named.

    Args:
        source: a file, a data set's name, or a `.safetensors` file of windows, which is used as it is.
        encoding: how the model reads text.
        seq_len: L; tokens per window.
        limit: read no more than this many windows.
        use: which split of a known data set is read where none is named.

    Raises:
        UserError: the source cannot be read, is a mixture, has fewer than two tokens, or ids beyond the vocabulary.
    """
    source = str(source)
    if len(parse_source(source).names) > 1:
        raise UserError(f"held-out text '{source}' is a mixture: name one source")
    if is_tokens(source):
        rows = load_tokens(source)[:limit].contiguous()
        if rows.shape[1] != seq_len:
            raise UserError(f"'{source}' holds windows of {rows.shape[1]} tokens, {seq_len} were asked for (seq_len)")
    else:
        rows = _cut(_held_out(source, encoding.text_field, use), encoding, seq_len, limit, source)
    if encoding.vocab_size is not None:
        check_vocabulary(rows, encoding.vocab_size, source)
    return rows


def _held_out(source: str, text_field: str | None, use: Literal["validation", "held_out"]) -> Iterator[str]:
    if Path(source).exists():
        return documents(source, text_field=text_field)
    data = hub.parse(source, use=use)
    rows = hub.rows(data, text_field=text_field)
    return iter(["\n\n".join(rows)]) if data.articles else rows


def _cut(texts: Iterable[str], encoding: TextEncoding, seq_len: int, limit: int | None, source: str) -> torch.Tensor:
    if seq_len < 2:
        raise UserError(f"seq_len is {seq_len}, accepted: at least 2")
    bos = encoding.bos
    text_length = seq_len - (bos is not None)
    enough = None if limit is None else limit * text_length
    parts: list[np.ndarray] = []
    count = 0
    # One document at a time: a stream is read no further than `limit` windows need.
    for text in texts:
        ids = next(encode([text], encoding.tokenizer))
        if parts:
            parts.append(np.array([encoding.end], dtype=np.int64))
            count += 1
        parts.append(ids)
        count += len(ids)
        if enough is not None and count >= enough:
            break
    tokens = torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.int64)
    if len(tokens) < (2 if bos is None else 1):
        raise UserError(f"{source} holds {len(tokens)} tokens, at least two are needed for a perplexity")
    if len(tokens) < text_length:
        return with_bos(tokens.unsqueeze(0), bos)
    cut = tokens[: len(tokens) // text_length * text_length].view(-1, text_length)
    return with_bos(cut[:limit].clone(), bos)
