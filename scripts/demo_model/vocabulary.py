"""The demo model's tokenizer: byte-level BPE with one special token."""

from __future__ import annotations

from collections.abc import Iterable

from corpus import SEPARATOR, Document
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["VOCABULARY", "train_tokenizer"]

VOCABULARY = 2048


def train_tokenizer(documents: Iterable[Document], longest: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the documents; id 0 is bos, eos and pad.

    `longest` is the model's context in tokens. Nothing is added around a text when encoding.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((d.text for d in documents), trainer=trainer)
    if backend.get_vocab_size() != VOCABULARY:
        raise ValueError(f"expected {VOCABULARY} tokens, trained {backend.get_vocab_size()}")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=longest,
        clean_up_tokenization_spaces=False,
    )
