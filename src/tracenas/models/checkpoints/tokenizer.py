"""A model's tokenizer as its files say it, or the reason why it cannot be loaded."""

from pathlib import Path
from typing import Any

from tracenas.errors import UserError, catchable
from tracenas.git_lfs import refuse_pointer
from tracenas.models.checkpoints.base_files import copied_files, has_vocabulary
from tracenas.models.checkpoints.source import ModelSource

__all__ = ["load_tokenizer"]

_RULES = ("normalizer", "pre_tokenizer", "decoder")
_MERGING = ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "ignore_merges")


def load_tokenizer(source: ModelSource, trust_remote_code: bool) -> tuple[Any, str]:
    """`(tokenizer, "")`; `(None, reason)` where the files cannot be read here, `(None, "")` where there are none.

    Raises:
        UserError: for a damaged tokenizer.json, and for a file that is a pointer of Git LFS.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    directory = source.path
    if not has_vocabulary(directory):
        settings = (directory / "tokenizer_config.json").is_file()
        return None, "tokenizer_config.json is there, but no vocabulary (tokenizer.json and the like)" * settings
    for path in copied_files(directory):
        refuse_pointer(path)
    name, file = str(directory), directory / "tokenizer.json"
    try:
        with catchable():
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception
        if "trust_remote_code" in str(error):
            return None, "it runs code of its own (auto_map in its files): read it, then give --trust-remote-code"
        if not file.is_file():
            return None, f"its files cannot be read: {' '.join(str(error).split())[:240] or type(error).__name__}"
        try:  # the class that the files name may be for another form of vocabulary
            with catchable():
                return PreTrainedTokenizerFast.from_pretrained(name), ""
        except Exception as damage:
            reason = " ".join(str(damage).split())[:240]
            raise UserError(f"model {source.name}: tokenizer.json cannot be read: {reason}") from error
    if file.is_file() and getattr(tokenizer, "is_fast", False) and not _as_in(file, tokenizer):
        plain = PreTrainedTokenizerFast.from_pretrained(name)
        plain.backend_tokenizer.post_processor = tokenizer.backend_tokenizer.post_processor
        return plain, ""
    return tokenizer, ""


def _as_in(file: Path, tokenizer: Any) -> bool:
    """Whether text is cut and joined as the file says; some classes of transformers 5 put rules of their own there."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if type(tokenizer) is PreTrainedTokenizerFast or type(tokenizer).__module__.startswith("transformers_modules."):
        return True
    stated, loaded = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
    return _rules(stated) == _rules(loaded)


def _rules(backend: Any) -> list[Any]:
    parts = [getattr(backend, name) for name in _RULES]
    states = [None if part is None else part.__getstate__() for part in parts]
    return [*states, type(backend.model), *(getattr(backend.model, name, None) for name in _MERGING)]
