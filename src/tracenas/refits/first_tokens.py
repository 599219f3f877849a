"""Tokens that a text may begin with, each as a sequence of its own: what a refit needs to see of attention's sinks.

The first token of every sequence attends to itself alone. Many models turn it, whatever it is, into a state of some
hundred times the others' size, which all later tokens attend to; windows of 512 tokens show a refit one such token
among 512. A sequence of one token is exactly that. What no window of the text begins with, a line break or the first
mark of a chat, may be what all of a user's do: so there are as many of the vocabulary.
"""

import torch
from torch import Tensor

from tracenas.models.surgery.stepping import BlockRunner

__all__ = ["embedded_first_tokens", "first_tokens"]

_SHARE = 24
"""There are twice as many as one in so many tokens of the text."""


def first_tokens(tokens: Tensor, vocabulary: int) -> Tensor:
    """A 24th of a text's tokens, and as many of the vocabulary's, both evenly spaced, as sequences, int64 [M, 1].

    Of one text they are always the same. Where all its windows begin alike (BOS), they are all this one token.

    Args:
        tokens: int64 [N, L].
        vocabulary: number of token ids.
    """
    count = max(1, tokens.numel() // _SHARE)
    places = torch.arange(count, device=tokens.device)
    drawn = torch.cat([tokens.flatten()[places * tokens.numel() // count], places * vocabulary // count])
    begins = tokens[:, 0]
    if len(begins) > 1:
        drawn = torch.where((begins == begins[0]).all(), begins[0], drawn)
    return drawn[:, None]


def embedded_first_tokens(runner: BlockRunner, tokens: Tensor, micro_batch: int) -> list[Tensor]:
    """What enters the first block of a text's first tokens, [B, 1, D] per as many tokens as a micro-batch of it has.

    Args:
        tokens: int64 [N, L].
        micro_batch: sequences of the text per forward pass.
    """
    vocabulary = int(runner.model.get_input_embeddings().weight.shape[0])
    return runner.embed(first_tokens(tokens, vocabulary), micro_batch * tokens.shape[1])
