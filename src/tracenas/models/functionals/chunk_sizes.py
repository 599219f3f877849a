"""How many tokens have logits at a time. Told here and not where they are made: memory is counted without torch."""

__all__ = ["CHUNK_ELEMENTS", "logit_tokens"]

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits of a chunk."""

_WORTH = 64
"""Tokens below which products with a large head are slower; twice as many logits are taken for it, no more."""


def logit_tokens(vocabulary: int, kind: str) -> int:
    """Tokens of a chunk on a device of this kind."""
    elements = CHUNK_ELEMENTS[kind]
    return max(1, elements // vocabulary, min(_WORTH, 2 * elements // vocabulary))
