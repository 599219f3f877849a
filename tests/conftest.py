"""Shared fixtures: everything is built in memory or in a temporary directory, nothing is fetched."""

import os

# Before torch and the hub's client are imported by any test.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRACENAS_LOG"] = "warning"  # what tests read on stderr does not depend on how long a phase takes

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

EOS = "</s>"


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """Byte level: id 0 is EOS, and UTF-8 text of n bytes has n tokens with ids 1 to 256."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=_byte_level(), eos_token=EOS, model_max_length=64)


@pytest.fixture(scope="session")
def bos_tokenizer() -> "PreTrainedTokenizerFast":
    """The same with BOS, id 257; it puts BOS before every text by itself."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokens = _byte_level()
    tokens.add_special_tokens(["<s>"])
    tokens.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token=EOS, model_max_length=64)


def _byte_level() -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {EOS: 0} | {letter: place for place, letter in enumerate(alphabet, start=1)}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens.decoder = decoders.ByteLevel()
    return tokens
