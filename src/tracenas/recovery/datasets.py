"""Endless sequences of training examples whose i-th element depends on nothing but the seed.

A run that is resumed takes up its sequence at the example where it stopped; several processes take turns at the
same sequence, so that a global batch holds the same examples whatever their number.

Shapes: N rows, L tokens of a window.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from tracenas.data.packing import eos_id, interleave, pack
from tracenas.data.sources import documents, is_tokens, parse_source
from tracenas.data.tokens import check_vocabulary, load_tokens
from tracenas.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tracenas.data.packing import Packed

__all__ = ["Examples", "Rows", "Windows", "collate_padded", "collate_windows", "text_examples"]

Example = Mapping[str, Tensor]


class Examples(IterableDataset[Example], ABC):
    """An endless sequence that can be entered anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 0
        """The first example that `iter` gives; those before it were trained on already."""

    @abstractmethod
    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""

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
                row = self._rows[int(place)]
                yield _window(row, torch.arange(len(row))) if isinstance(row, Tensor) else row

    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""
        return iter(Rows(self._rows, self._seed))


class Windows(Examples):
    """Windows packed from documents that are read, shuffled and tokenised as they are needed.

    A source that ends is read again in another order; a mixture keeps its shares for ever.

    Args:
        source: see `tracenas.data.sources.parse_source`; text.
        tokenizer: the model's.
        seq_len: L.
        seed: of the order of documents.
        eos: put after every document.
        vocab_size: the model's; ids must be below it.
    """

    def __init__(
        self,
        source: str,
        tokenizer: "PreTrainedTokenizerBase",
        seq_len: int,
        *,
        seed: int,
        eos: int,
        vocab_size: int,
        text_field: str | None = None,
    ) -> None:
        super().__init__()
        self._source = source
        self._parts = parse_source(source).parts
        self._tokenizer = tokenizer
        self._seq_len = seq_len
        self._seed = seed
        self._eos = eos
        self._vocab_size = vocab_size
        self._text_field = text_field

    def from_start(self) -> Iterator[Example]:
        """The whole sequence."""
        streams = [self._endless(name, place) for place, (name, _) in enumerate(self._parts)]
        for packed in interleave(streams, [weight for _, weight in self._parts]):
            ids = torch.from_numpy(packed.input_ids)
            check_vocabulary(ids, self._vocab_size, self._source)
            yield _window(ids, torch.from_numpy(packed.position_ids))

    def _endless(self, name: str, place: int) -> "Iterator[Packed]":
        for epoch in itertools.count():
            seed = int(np.random.SeedSequence([self._seed, place, epoch]).generate_state(1)[0])
            found = documents(name, seed=seed, text_field=self._text_field)
            nothing = True
            for packed in pack(found, self._tokenizer, self._seq_len, eos=self._eos):
                nothing = False
                yield packed
            if nothing:
                raise UserError(f"data '{name}' is too short for one sequence of {self._seq_len} tokens (seq_len)")


def text_examples(
    source: str,
    tokenizer: "PreTrainedTokenizerBase | None",
    seq_len: int,
    *,
    seed: int,
    vocab_size: int,
    eos: int | Sequence[int] | None = None,
    text_field: str | None = None,
) -> Examples:
    """Training windows from text (packed) or from token ids (each row as it is).

    Raises:
        UserError: if the source is wrong, or its rows have another length than `seq_len`.
    """
    if not is_tokens(source):
        if tokenizer is None:
            raise UserError("the model has no tokenizer; give token ids (.safetensors) as data")
        end = eos_id(tokenizer, eos)
        return Windows(source, tokenizer, seq_len, seed=seed, eos=end, vocab_size=vocab_size, text_field=text_field)
    rows = load_tokens(source)
    if rows.shape[1] != seq_len:
        raise UserError(f"'{source}' holds sequences of {rows.shape[1]} tokens, {seq_len} were asked for (seq_len)")
    check_vocabulary(rows, vocab_size, source)
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
            own = len(example["input_ids"])
            tail = (0, length - own)
            batch["input_ids"].append(torch.nn.functional.pad(example["input_ids"], tail, value=self._pad))
            batch["labels"].append(torch.nn.functional.pad(example["labels"], tail, value=-100))
            batch["attention_mask"].append((torch.arange(length) < own).long())
        return {key: torch.stack(tensors) for key, tensors in batch.items()}


def _window(input_ids: Tensor, position_ids: Tensor) -> Example:
    return {"input_ids": input_ids, "position_ids": position_ids, "labels": input_ids}
