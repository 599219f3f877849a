"""Endless sequences of training examples whose i-th element depends on nothing but the seed.

A run that is resumed takes up its sequence at the example where it stopped; several processes take turns at the
same sequence, so that a global batch holds the same examples whatever their number.

Shapes: N rows, L tokens of a window.
"""

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from tracenas.data.calibration import calibration
from tracenas.data.encoding import TextEncoding
from tracenas.data.further import Repeats
from tracenas.data.packing import Packed, interleave, pack
from tracenas.data.sources import documents, is_tokens, parse_source
from tracenas.data.tokens import check_vocabulary, load_tokens
from tracenas.data.windows import text_tokens
from tracenas.errors import UserError

__all__ = ["Examples", "Rows", "Windows", "collate_padded", "collate_windows", "key", "text_examples"]

Example = Mapping[str, Tensor]

_PART = 10
"""Of so many examples one is set aside at most."""
_AT_ONCE = 256
"""Rows whose text is compared at a time."""
_SAMPLE = 0x53504C54
"""In the seed of what is set aside, so that it is drawn apart from the order of training."""


class Examples(IterableDataset[Example], ABC):
    """An endless sequence that can be entered anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 0
        """The first example that `iter` gives; those before it were trained on already."""

    @abstractmethod
    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""

    @abstractmethod
    def sample(self, limit: int) -> list[Example]:
        """Up to `limit` examples, each once, drawn apart from the order of the sequence."""

    @abstractmethod
    def without(self, examples: Sequence[Example]) -> "Examples":
        """The sequence without these examples and what repeats them.

        Raises:
            UserError: if nothing remains; here or when the first one is asked for.
        """

    def split(self, limit: int) -> "tuple[list[Example], Examples]":
        """Up to `limit` examples, but no more than a tenth of all, and the sequence without them.

        Raises:
            UserError: if there are too few.
        """
        drawn = self.sample(_PART * limit)
        validation = drawn[: max(1, min(limit, len(drawn) // _PART))]
        return validation, self.without(validation)

    def __iter__(self) -> Iterator[Example]:
        return itertools.islice(self.from_start(), self.start, None)


class Rows(Examples):
    """Examples in memory, in a new random order every epoch; skipping costs nothing.

    Args:
        rows: the examples, or [N, L] token ids.
        seed: of the order.
    """

    def __init__(self, rows: Sequence[Example] | Tensor, seed: int) -> None:
        super().__init__()
        self._rows = rows
        self._seed = seed

    def __iter__(self) -> Iterator[Example]:
        count = len(self._rows)
        for epoch in itertools.count(self.start // count):
            order = np.random.default_rng([self._seed, epoch]).permutation(count)
            first = self.start % count if epoch == self.start // count else 0
            for place in order[first:]:
                yield _example(self._rows[int(place)])

    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""
        return iter(Rows(self._rows, self._seed))

    def sample(self, limit: int) -> list[Example]:
        """Up to `limit` of the rows."""
        order = np.random.default_rng([self._seed, _SAMPLE]).permutation(len(self._rows))[:limit]
        return [_example(self._rows[int(place)]) for place in order]

    def without(self, examples: Sequence[Example]) -> "Rows":
        """The rows that are none of these examples; of token ids, those that share no more than an eighth of a row."""
        rest: Sequence[Example] | Tensor
        if isinstance(self._rows, Tensor):
            repeats = _repeats(examples)
            rest = torch.cat([part[~repeats(part)] for part in self._rows.split(_AT_ONCE)])
        else:
            excluded = {key(example) for example in examples}
            rest = [row for row in self._rows if key(row) not in excluded]
        if not len(rest):
            raise _nothing_left("the data")
        return Rows(rest, self._seed)


class Windows(Examples):
    """Windows packed from documents that are read, shuffled and tokenised as they are needed.

    A source that ends is read again in another order; a mixture keeps its shares for ever.

    Args:
        source: see `tracenas.data.sources.parse_source`; text.
        encoding: how the model reads text; its BOS stands before every document and is never learned.
        seq_len: L.
        seed: of the order of documents.
    """

    def __init__(self, source: str, encoding: TextEncoding, seq_len: int, *, seed: int) -> None:
        super().__init__()
        self._source = source
        self._parts = parse_source(source).parts
        self._encoding = encoding
        self._seq_len = seq_len
        self._seed = seed
        self._repeats: Repeats | None = None

    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""
        streams = [self._endless(name, place) for place, (name, _) in enumerate(self._parts)]
        for packed in interleave(streams, [weight for _, weight in self._parts]):
            ids = torch.from_numpy(packed.input_ids)
            if self._encoding.vocab_size is not None:
                check_vocabulary(ids, self._encoding.vocab_size, self._source)
            yield _window(ids, torch.from_numpy(packed.position_ids), self._encoding.bos)

    def _endless(self, name: str, place: int) -> Iterator[Packed]:
        encoding = self._encoding
        for epoch in itertools.count():
            seed = int(np.random.SeedSequence([self._seed, place, epoch]).generate_state(1)[0])
            texts = documents(name, seed=seed, text_field=encoding.text_field)
            nothing = repeated = True
            for packed in pack(texts, encoding.tokenizer, self._seq_len, eos=encoding.end, bos=encoding.bos):
                nothing = False
                if self._repeats is None or not self._repeats(torch.from_numpy(packed.input_ids)[None]):
                    repeated = False
                    yield packed
            if repeated and not nothing:
                raise _nothing_left(f"data '{name}'")
            if nothing:
                raise UserError(f"data '{name}' is too short for one sequence of {self._seq_len} tokens (seq_len)")

    def sample(self, limit: int) -> list[Example]:
        """Up to `limit` windows of all documents, as a calibration is drawn."""
        seed = int(np.random.SeedSequence([self._seed, _SAMPLE]).generate_state(1)[0])
        rows = calibration(self._source, self._encoding, samples=limit, seq_len=self._seq_len, seed=seed, fewer=True)
        return [_example(row) for row in rows]

    def without(self, examples: Sequence[Example]) -> "Windows":
        """The windows that share no more than an eighth of their text with these."""
        rest = copy.copy(self)
        rest._repeats = _repeats(examples, self._encoding.bos)
        next(iter(rest))
        return rest


def text_examples(source: str, encoding: TextEncoding, seq_len: int, *, seed: int) -> Examples:
    """Training windows from text (packed, with BOS before every document) or from token ids (each row as it is).

    Raises:
        UserError: if the source is wrong, its rows have another length than `seq_len`, or ids beyond the vocabulary.
    """
    if not is_tokens(source):
        return Windows(source, encoding, seq_len, seed=seed)
    rows = load_tokens(source)
    if rows.shape[1] != seq_len:
        raise UserError(f"'{source}' holds sequences of {rows.shape[1]} tokens, {seq_len} were asked for (seq_len)")
    if encoding.vocab_size is not None:
        check_vocabulary(rows, encoding.vocab_size, source)
    return Rows(rows, seed)


def collate_windows(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Windows of one length → a batch. No attention mask: `position_ids` keep documents apart."""
    return {key: torch.stack([example[key] for example in examples]) for key in ("input_ids", "position_ids", "labels")}


def collate_padded(pad: int) -> Callable[[Sequence[Example]], dict[str, Tensor]]:
    """Examples of several lengths → a batch padded on the right with token `pad`, which has no label."""
    return _Padded(pad)


class _Padded:
    """A class, because loader processes must be able to unpickle it."""

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        length = max(len(example["input_ids"]) for example in examples)
        batch: dict[str, Any] = {"input_ids": [], "labels": [], "attention_mask": []}
        for example in examples:
            tokens = len(example["input_ids"])
            tail = (0, length - tokens)
            batch["input_ids"].append(torch.nn.functional.pad(example["input_ids"], tail, value=self._pad))
            batch["labels"].append(torch.nn.functional.pad(example["labels"], tail, value=-100))
            batch["attention_mask"].append((torch.arange(length) < tokens).long())
        return {key: torch.stack(tensors) for key, tensors in batch.items()}


def key(example: Example) -> bytes:
    """What tells two examples apart: their token ids."""
    return example["input_ids"].numpy().tobytes()


def _repeats(windows: Sequence[Example], bos: int | None = None) -> Repeats:
    text = text_tokens(torch.stack([example["input_ids"] for example in windows]), bos)
    return Repeats(text, min(32, max(1, text.shape[1] // 2)))


def _nothing_left(what: str) -> UserError:
    return UserError(
        f"{what}: nothing is left to train on beside the sequences that choose the checkpoint and what repeats them: "
        "more data, or a text of its own for validation"
    )


def _example(row: Example | Tensor) -> Example:
    return _window(row, torch.arange(len(row))) if isinstance(row, Tensor) else row


def _window(input_ids: Tensor, position_ids: Tensor, bos: int | None = None) -> Example:
    """The example of a window; a BOS at the start of a document is read, and is no label."""
    labels = input_ids
    if bos is not None:
        labels = input_ids.masked_fill((position_ids == 0) & (input_ids == bos), -100)
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": labels}
