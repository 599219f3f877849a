"""Where text comes from: files, named data sets streamed from the Hugging Face hub, and mixtures of them.

Needs nothing but the standard library and numpy until a Parquet file or a hub data set is read.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tracenas.data import files, hub
from tracenas.data.decoding import compression
from tracenas.errors import UserError

__all__ = ["SHUFFLE_BUFFER", "Mixture", "documents", "is_tokens", "parse_source", "probe"]

SHUFFLE_BUFFER = 10_000
"""Documents held at a time when a stream is shuffled."""

_WHOLE_FILE_BYTES = 2**30
"""Local files up to this size, an eighth of it if compressed, are shuffled as a whole."""

_FILE_SUFFIX = re.compile(
    r"\.(txt|text|md|raw|jsonl?|ndjson|jsonlines|parquet|safetensors|csv|tsv|tab|gz|zst|bz2|xz|zip|py|html?)$", re.I
)


@dataclass(frozen=True)
class Mixture:
    """Sources and their shares of the tokens.

    Attributes:
        parts: (source, weight) in the order given; the weights are positive and sum to 1.
    """

    parts: tuple[tuple[str, float], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The sources without their weights."""
        return tuple(name for name, _ in self.parts)


def parse_source(source: str) -> Mixture:
    """Parse and check `--data` without reading it: a file, a data set's name, or `a.jsonl=0.7,b.txt=0.3`.

    An existing file is taken as such, whatever characters its name has. A single source is a mixture of one.

    Raises:
        UserError: a file is missing or a directory, a name is unknown, a mixture's weights are not positive
            numbers, or a source occurs twice.
    """
    if not source.strip():
        raise UserError(f"no data named: accepted are {_ACCEPTED}")
    if Path(source).exists() or ("=" not in source and "," not in source):
        _check_single(source)
        return Mixture(((source, 1.0),))

    parts: dict[str, float] = {}
    for part in source.split(","):
        name, _, number = (text.strip() for text in part.rpartition("="))
        weight = _weight(number)
        if not name or weight is None:
            raise UserError(
                f"data mixture '{source}': '{part.strip()}' is no source with a positive weight; "
                "accepted: a.jsonl=0.7,b.txt=0.3"
            )
        if name in parts:
            raise UserError(f"data mixture '{source}': '{name}' occurs twice")
        _check_single(name)
        if is_tokens(name):
            raise UserError(f"data mixture '{source}': '{name}' holds token ids, only text can be mixed")
        parts[name] = weight
    total = sum(parts.values())
    return Mixture(tuple((name, weight / total) for name, weight in parts.items()))


def probe(text_field: str | None, *sources: str | None) -> None:
    """Check the beginning of what was named, without torch, network, or reading all of it; None is passed over.

    Raises:
        UserError: see `parse_source`; a file is not what its name says, or its first row has no text.
    """
    for source in sources:
        for name in () if source is None else parse_source(source).names:
            if Path(name).exists() and not is_tokens(name):
                files.probe(Path(name), text_field=text_field)


def documents(source: str, *, seed: int | None = None, text_field: str | None = None) -> Iterator[str]:
    """The documents of one source (not a mixture); empty ones are left out.

    Text files hold documents separated by `<|endoftext|>`; without it, the file is one document. JSON lines, CSV,
    TSV and Parquet files hold one document per row, in the field `text` or `text_field`, and so do data sets on
    the hub (`wikitext2`, whose rows are lines, is joined into articles). Files may be compressed.

    Args:
        source: a text, `.jsonl`, `.csv`, `.tsv` or `.parquet` file; `fineweb-edu`, `wikitext2`, `c4`; or a hub data
            set, `org/name[:config][@split]`.
        seed: None keeps the source's order. A number shuffles, the same way each time: files up to 1 GiB as a
            whole, anything larger and streams through a buffer of `SHUFFLE_BUFFER` documents.
        text_field: the field that holds the text.

    Raises:
        UserError: when the first document is asked for, or one that cannot be read: what is wrong and where.
    """
    if Path(source).exists():
        path = Path(source)
        _check_single(source)
        texts = files.read(path, text_field=text_field)
        if seed is not None:
            size = path.stat().st_size * (8 if compression(path) else 1)
            buffer = None if size <= _WHOLE_FILE_BYTES else SHUFFLE_BUFFER
            texts = _shuffled(texts, np.random.default_rng(seed), buffer)
        yield from texts
        return
    mixture = parse_source(source)
    if mixture.names != (source,):
        raise ValueError(f"'{source}' is a mixture: its parts are read one by one")
    data = hub.parse(source)
    if data.articles:
        texts = hub.articles(data, text_field=text_field)
        if seed is not None:
            texts = _shuffled(texts, np.random.default_rng(seed), SHUFFLE_BUFFER)
        yield from texts
    else:
        yield from hub.rows(data, text_field=text_field, seed=seed, buffer=SHUFFLE_BUFFER)


def is_tokens(source: str) -> bool:
    """Whether `source` names a file of token ids (`.safetensors`) and not text."""
    return source.lower().endswith(".safetensors")


_ACCEPTED = (
    "a text, .jsonl, .csv, .tsv, .parquet or .safetensors (token ids) file, "
    f"{', '.join(hub.KNOWN)}, a hub data set 'org/name[:config][@split]', "
    "or a mixture 'a.jsonl=0.7,b.txt=0.3'"
)


def _check_single(source: str) -> None:
    path = Path(source)
    if path.is_dir():
        raise UserError(f"data '{source}' is a directory: name a file in it")
    if path.exists():
        return
    looks_like_a_path = source.startswith(("/", "./", "../", "~")) or source.count("/") > 1
    if looks_like_a_path or _FILE_SUFFIX.search(source):
        raise UserError(f"data file '{source}' does not exist")
    hub.parse(source)


def _weight(text: str) -> float | None:
    try:
        weight = float(text)
    except ValueError:
        return None
    return weight if 0.0 < weight < float("inf") else None


def _shuffled(texts: Iterator[str], rng: np.random.Generator, buffer: int | None) -> Iterator[str]:
    """`texts` in random order; with a buffer, each document drawn from the `buffer` next ones."""
    held: list[str] = []
    for document in texts:
        if buffer is not None and len(held) >= buffer:
            place = int(rng.integers(len(held)))
            yield held[place]
            held[place] = document
        else:
            held.append(document)
    for place in rng.permutation(len(held)):
        yield held[place]
