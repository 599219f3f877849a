"""Gram matrices of the dense model that a pass over the text has made, put aside for the refits that come later."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block, Key, present
from tracenas.models.surgery.ordering import Ordering, permutation
from tracenas.paging import Keep
from tracenas.pipeline.refit.stream import StoredStream
from tracenas.refits.dense_stream import DenseStream
from tracenas.saliency.backwards import Shelf

__all__ = ["StoredGrams"]

_LARGEST = 1 << 33
"""Bytes that may be put aside; what would be more is computed again."""


class StoredGrams:
    """E[x xᵀ], or a multiple of it, of every output projection's inputs, float32 [n, n]; to be closed.

    Args:
        blocks: the model's.
        stream: what the same pass records hidden states in, if they are wanted; closed with this.
    """

    def __init__(self, blocks: Sequence[Block], stream: StoredStream | None = None) -> None:
        self._subs = [(key, sub.output_projection) for key, sub in present(blocks) if not sub.stacked]
        one_stack = not blocks[0].stack
        self.kept = one_stack and 4 * sum(p.columns**2 for _, p in self._subs) <= _LARGEST
        """Whether anything is put aside: not what is too large, nor of encoder–decoders, which are not refitted so."""
        self._stream = stream if one_stack else None
        self._wanted = {key for key, _ in self._subs}
        self._shelf: Shelf | None = None
        self._places: dict[Key, int] = {}
        self._tokens: Tensor | None = None
        self._in_order = False

    def begin(self, model: Any, tokens: Tensor, *, in_order: bool = False) -> StoredStream | None:
        """A pass over tokens, int64 [N, L], begins; what another one has left is forgotten. What it records into.

        Args:
            model: the dense one.
            in_order: whether the columns come in the super-network's order; else in the base's.
        """
        if self._shelf is not None:
            self._shelf.clear()
        self._places.clear()
        self._tokens, self._in_order = tokens, in_order
        if self._stream is not None:
            self._stream.begin(model, tokens)
        return self._stream

    def put(self, key: Key, moment: Tensor) -> None:
        """Put a sub-block's matrix aside.

        Raises:
            UserError: if the disk is full.
        """
        if self.kept and key in self._wanted:
            self._shelf = self._shelf or Shelf(moment.device)
            self._places[key] = self._shelf.put(moment.float())

    def of(self, tokens: Tensor, ordering: Ordering) -> Iterator[tuple[Key, Tensor]] | None:
        """The matrices, float64, of a pass over these tokens, in forward order; None where they are not all here.

        Args:
            ordering: of the units, the super-network's, which columns are put into.
        """
        return self._ordered(ordering) if self.has(tokens) else None

    def has(self, tokens: Tensor) -> bool:
        """Whether the matrices of a pass over these tokens are all here."""
        return self._passed(tokens) and self._wanted <= self._places.keys()

    def stream(self, tokens: Tensor, keep: Keep) -> Callable[[Sequence[Tensor]], DenseStream] | None:
        """Makes the hidden states of a pass over these tokens of what enters the first block; None: not here.

        Args:
            keep: where they lie.
        """
        return self._stream.reading(keep) if self._stream is not None and self._passed(tokens) else None

    def _passed(self, tokens: Tensor) -> bool:
        """Whether the last pass is over these tokens."""
        return self._tokens is not None and torch.equal(self._tokens, tokens)

    def _ordered(self, ordering: Ordering) -> Iterator[tuple[Key, Tensor]]:
        for key, projection in self._subs:
            assert self._shelf is not None
            gram = self._shelf.get(self._places[key])
            order = None if self._in_order else permutation(projection, 1, ordering.ranking[key])
            if order is not None:
                index = torch.from_numpy(order).to(gram.device)
                gram = gram[index][:, index]
            yield key, gram.double()

    def close(self) -> None:
        """Give everything up."""
        self._tokens = None
        self._places.clear()
        if self._shelf is not None:
            self._shelf.close()
        if self._stream is not None:
            self._stream.close()
