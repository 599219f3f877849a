"""The calibration set: a seeded choice of packed windows, or token ids as they are.

"A fixed calibration set of 65,536 tokens (16 sequences)", TraceNAS §4.1.
"""

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from tracenas.data.encoding import TextEncoding
from tracenas.data.packing import Packed, encode, interleave, pack, pieces
from tracenas.data.sources import documents, is_tokens, parse_source
from tracenas.data.tokens import check_vocabulary, load_tokens
from tracenas.data.windows import with_bos
from tracenas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["DEFAULT_SAMPLES", "calibration"]

DEFAULT_SAMPLES = 16
"""Sequences, TraceNAS §4.1."""

_CHARACTERS_PER_TOKEN = 16
"""More than tokenizers reach on text, so that a piece of that many per token holds a window."""

_LONG = 1_000_000
"""Texts of fewer characters are tokenised as a whole."""


def calibration(
    source: str,
    encoding: TextEncoding,
    *,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    default_seq_len: int = 4096,
    fewer: bool = False,
) -> torch.Tensor:
    """The token ids that everything is measured on, [samples, seq_len] int64.

    Text: the documents are shuffled (files up to 1 GiB as a whole, otherwise through a buffer of 10,000),
    joined by EOS and packed, and the first windows taken. Where there are fewer documents than samples, the
    windows lie at random places of all the text instead, without overlap. A mixture's weights are shares of
    the windows. Tokens (`.safetensors`): the first `samples` rows, nothing shuffled. The same arguments give
    the same ids.

    Args:
        source: see `tracenas.data.sources.parse_source`.
        encoding: how the model reads text.
        samples: sequences; None: 16 of a text, all of a token file.
        seq_len: tokens per sequence; None: those of the token file, `default_seq_len` for text.
        seed: of the choice.
        default_seq_len: min(4096, the model's positions), unless the caller knows better.
        fewer: take what there is, at least one sequence, where the source holds fewer than `samples`.

    Raises:
        UserError: the source is wrong (`documents`, `load_tokens`), holds fewer windows than asked for, or
            ids beyond the vocabulary.
    """
    for name, value, least in (("samples", samples, 1), ("seq_len", seq_len, 2)):
        if value is not None and value < least:
            raise UserError(f"{name} is {value}, accepted: at least {least}")
    mixture = parse_source(source)
    if is_tokens(source):
        input_ids = _tokens(source, samples, seq_len, fewer)
    else:
        length = seq_len or default_seq_len
        count = samples or DEFAULT_SAMPLES
        text_length = length - (encoding.bos is not None)
        streams = [_windows(name, encoding, count, text_length, seed) for name in mixture.names]
        weights = [weight for _, weight in mixture.parts]
        rows = [window.input_ids for window in itertools.islice(interleave(streams, weights), count)]
        if len(rows) < count and not (fewer and rows):
            what = "in these shares" if len(streams) > 1 else "in all"
            raise UserError(
                f"'{source}' gives {len(rows)} samples of {length} tokens {what}, {count} were asked for: "
                "use more text, fewer samples, or a shorter seq_len"
            )
        input_ids = with_bos(torch.from_numpy(np.stack(rows)), encoding.bos)
    if encoding.vocab_size is not None:
        check_vocabulary(input_ids, encoding.vocab_size, source)
    return input_ids


def _tokens(source: str, samples: int | None, seq_len: int | None, fewer: bool) -> torch.Tensor:
    input_ids = load_tokens(source)
    count, length = input_ids.shape
    if seq_len is not None and seq_len != length:
        raise UserError(f"'{source}' holds sequences of {length} tokens, {seq_len} were asked for (seq_len)")
    if samples is not None and samples > count and not fewer:
        raise UserError(f"'{source}' holds {count} samples, {samples} were asked for (samples)")
    return input_ids[:samples].contiguous()


def _windows(source: str, encoding: TextEncoding, samples: int, seq_len: int, seed: int) -> Iterator[Packed]:
    tokenizer, eos = encoding.tokenizer, encoding.end
    texts = documents(source, seed=seed, text_field=encoding.text_field)
    first = list(itertools.islice(texts, samples))
    if len(first) == samples:
        yield from pack(itertools.chain(first, texts), tokenizer, seq_len, eos=eos)
    else:
        rng = np.random.default_rng(seed)
        windows: list[Packed] = []
        if sum(map(len, first)) >= max(_LONG, 2 * samples * seq_len * _CHARACTERS_PER_TOKEN):
            windows = list(itertools.islice(_excerpts(first, tokenizer, seq_len, rng), samples))
        if len(windows) < samples:
            windows = _scattered(first, tokenizer, seq_len, eos, rng)
        yield from windows


def _excerpts(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", seq_len: int, rng: np.random.Generator
) -> Iterator[Packed]:
    """A window from each of many short pieces of very long texts, which would take minutes to tokenise."""
    size = int(seq_len * _CHARACTERS_PER_TOKEN)
    parts = [part for text in texts for part in pieces(text, size)]
    positions = np.arange(seq_len, dtype=np.int64)
    for place in rng.permutation(len(parts)):
        ids = next(encode([parts[place]], tokenizer))
        if len(ids) >= seq_len:
            at = int(rng.integers(len(ids) - seq_len + 1))
            yield Packed(ids[at : at + seq_len], positions)


def _scattered(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", seq_len: int, eos: int, rng: np.random.Generator
) -> list[Packed]:
    """All windows of a grid laid over the texts, its origin and the order of the windows random."""
    end = np.array([eos], dtype=np.int64)
    tokens = np.concatenate([part for ids in encode(texts, tokenizer) for part in (ids, end)])
    offset = int(rng.integers(len(tokens) % seq_len + 1))
    grid = tokens[offset : offset + len(tokens) // seq_len * seq_len].reshape(-1, seq_len)
    positions = np.arange(seq_len, dtype=np.int64)
    return [Packed(grid[place], positions) for place in rng.permutation(len(grid))]
