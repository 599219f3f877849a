"""Shared fixtures: everything is built in memory or in a temporary directory, nothing is fetched."""

import os

# Before torch and the hub's client are imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS = "</s>"


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Byte level: id 0 is EOS, and UTF-8 text of n bytes has n tokens with ids 1 to 256."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {EOS: 0} | {letter: place for place, letter in enumerate(alphabet, start=1)}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token=EOS, model_max_length=64)
