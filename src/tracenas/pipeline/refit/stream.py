"""The dense model's hidden states over the text of refits, put aside by the pass that makes its statistics.

A sequential refit aims at them; without them it would run the dense model over the same text again.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracenas.families import Block
from tracenas.paging import Keep, on_disk
from tracenas.refits.dense_stream import DenseBlock, DenseStream, refitted, watching_contributions, watching_outputs
from tracenas.refits.first_tokens import first_tokens
from tracenas.saliency.backwards import Shelf

__all__ = ["StoredStream"]

_SPARE = 2
"""Times as much space as is needed is free, or nothing is put aside."""
_ENTERING, _ADDED, _OUTPUT = "entering", "added", "output"


class StoredStream:
    """Hidden states in a temporary file: of models in host memory, where that file lies on a disk that has the room.

    Elsewhere nothing is put aside: an accelerator makes them again sooner than a disk gives them.

    Args:
        blocks: the model's, of one stack.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = blocks
        self._shelf: Shelf | None = None
        self._places: list[dict[tuple[str, str], list[int]]] = []
        """Of every block by (what, sub-block): numbers of the parts, in the order of the tokens."""
        self._recorded = 0

    def begin(self, model: Any, tokens: Tensor) -> None:
        """A pass over tokens, int64 [N, L], and first tokens begins; what another one has left is forgotten."""
        self.close()
        self._places = [{} for _ in self.blocks]
        weight = next(iter(model.parameters()))
        vocabulary, hidden = model.get_input_embeddings().weight.shape
        row = hidden * weight.element_size()
        rows = sum(1 + sum(1 + bool(sub.post_norm) for sub in refitted(block)) for block in self.blocks)
        count = tokens.numel() + len(first_tokens(tokens, vocabulary))
        if weight.device.type == "cpu" and _has_room(count * rows * row):
            self._shelf = Shelf(weight.device)

    @contextmanager
    def recording(self, model: Any, index: int) -> Iterator[None]:
        """Sees what the sub-blocks of block `index` give while it runs, once for all tokens in their order."""
        block, subs = self.blocks[index], refitted(self.blocks[index])
        with (
            watching_contributions(model, block, subs, lambda name, value: self._put(index, _ADDED, name, value)),
            watching_outputs(model, block, subs, lambda name, value: self._put(index, _OUTPUT, name, value)),
        ):
            yield

    def left(self, index: int, states: Sequence[Tensor]) -> None:
        """What has left block `index`, [B, T, D] per micro-batch."""
        if index + 1 < len(self.blocks):
            for state in states:
                self._put(index + 1, _ENTERING, "", state)
        self._recorded = index + 1

    def reading(self, keep: Keep) -> Callable[[Sequence[Tensor]], DenseStream] | None:
        """Makes the stream of what enters the first block; None where it is not here, or not all of it.

        Args:
            keep: where its tensors lie.
        """
        whole = self._shelf is not None and self._recorded == len(self.blocks)
        return partial(_Reading, self, keep) if whole else None

    def read(self, index: int, what: str, name: str = "") -> Tensor:
        """What the pass has seen of block `index`, [all tokens, D]."""
        assert self._shelf is not None
        return torch.cat([self._shelf.get(number).flatten(0, -2) for number in self._places[index][what, name]])

    def close(self) -> None:
        """Give everything up."""
        self._places, self._recorded = [], 0
        if self._shelf is not None:
            self._shelf.close()
            self._shelf = None

    def _put(self, index: int, what: str, name: str, value: Tensor) -> None:
        if self._shelf is not None:
            self._places[index].setdefault((what, name), []).append(self._shelf.put(value))


class _Reading:
    """The stream as it was put aside.

    Args:
        stored: holds it.
        keep: where its tensors lie.
        embedded: what enters the first block, [B, T, D] per micro-batch.
    """

    def __init__(self, stored: StoredStream, keep: Keep, embedded: Sequence[Tensor]) -> None:
        self._stored, self._keep, self._embedded = stored, keep, embedded

    def over(self, index: int) -> DenseBlock:
        """Block `index`."""
        entering, added, outputs = self._embedded, dict[str, list[Tensor]](), dict[str, list[Tensor]]()
        if index:
            states = self._parts(self._stored.read(index, _ENTERING))
            entering = [state.view_as(like) for state, like in zip(states, self._embedded, strict=True)]
        for sub in refitted(self._stored.blocks[index]):
            name = sub.spec.name
            added[name] = self._parts(self._stored.read(index, _ADDED, name))
            outputs[name] = self._parts(self._stored.read(index, _OUTPUT, name)) if sub.post_norm else added[name]
        return DenseBlock(entering, outputs, added)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Rows [all tokens, D] by micro-batch, as far as these go: first tokens, the last ones, may not be wanted."""
        sizes = [state[..., 0].numel() for state in self._embedded]
        return [self._keep(part) for part in rows[: sum(sizes)].split(sizes)]


def _has_room(size: int) -> bool:
    """Whether temporary files are on a disk that has so many bytes, and as many again."""
    directory = Path(tempfile.gettempdir())
    return on_disk(directory) and shutil.disk_usage(directory).free >= _SPARE * size
