"""Packed batches: every epoch shuffles the documents, packs them and shuffles the windows.

Shapes: S windows per batch, T tokens per window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from corpus import Document
from torch import Tensor
from transformers import PreTrainedTokenizerFast

__all__ = ["Packer", "encode", "pack", "windows"]

REPEATED_KINDS = {"topic", "docs", "builtin"}  # prose counts twice beside source


def encode(tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]) -> list[Tensor]:
    """Token ids of every document, int32 [n], each ended by eos."""
    batch = tokenizer.backend_tokenizer.encode_batch([d.text for d in documents])
    eos = tokenizer.eos_token_id
    return [torch.tensor([*encoding.ids, eos], dtype=torch.int32) for encoding in batch]


def pack(ids: Sequence[Tensor], eos: int) -> Tensor:
    """One stream, int32 [N], that begins with eos and has eos after every document."""
    return torch.cat([torch.tensor([eos], dtype=torch.int32), *ids])


def windows(stream_N: Tensor, length: int) -> Tensor:
    """Windows [n, length + 1] that overlap by the one token predicted last and read first."""
    return stream_N.unfold(0, length + 1, length)


class Packer:
    """The training batch of any step, so that a run can resume at any step.

    `length` is the longest window; `count` windows make a step of count * length tokens.
    """

    def __init__(self, ids: Sequence[Tensor], documents: Sequence[Document], length: int, count: int) -> None:
        twice = [i for i, d in enumerate(documents) if d.kind in REPEATED_KINDS]
        self._order = [*range(len(ids)), *twice]
        self._ids = ids
        self._length, self._count = length, count
        tokens = sum(len(ids[i]) for i in self._order)
        self.epoch_tokens = tokens
        self.epoch_steps = tokens // (length * count)
        self._epoch, self._windows = -1, torch.empty(0)

    def _pack_epoch(self, epoch: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed * 10_000 + epoch)
        order = torch.randperm(len(self._order), generator=generator).tolist()
        stream = pack([self._ids[self._order[i]] for i in order], eos=0)
        cut = windows(stream, self._length)
        self._windows = cut[torch.randperm(len(cut), generator=generator)]
        self._epoch = epoch

    def batch(self, step: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, int64 [S, T], cut to windows of `length` tokens."""
        epoch, position = divmod(step, self.epoch_steps)
        if epoch != self._epoch:
            self._pack_epoch(epoch, seed)
        taken = self._windows[position * self._count : (position + 1) * self._count].long()
        return taken[:, :-1].reshape(-1, length), taken[:, 1:].reshape(-1, length)
