"""How text is cut into words before merging: tokenizer.json's pre-tokenizer, and llama.cpp's name for the same.

llama.cpp has these rules built in and picks them by `tokenizer.ggml.pre`. The table is matched exactly: under a rule
that is only similar, a model reads other tokens than it was trained on, and nothing fails.
"""

from collections.abc import Mapping
from typing import Any

from tracenas.errors import UserError

__all__ = ["pre_tokenizer_name"]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD, _MARKS = r"[^\r\n\p{L}\p{N}]?", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}{_MARKS}"
_GPT4O = rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}{_MARKS}"

_Steps = tuple[tuple[object, ...], ...]
_WORDWISE = ("ByteLevel", True)
_PLAIN = ("ByteLevel", False)

# (steps, whether a word that is a token is taken whole) → name
_NAMES: dict[tuple[_Steps, bool], str] = {
    ((_WORDWISE,), False): "gpt-2",
    ((("Digits", True), _WORDWISE), False): "smollm",
    ((("Split", _LLAMA3), _PLAIN), True): "llama-bpe",
    ((("Split", _LLAMA3), _PLAIN), False): "smaug-bpe",
    ((("Split", _QWEN2), _PLAIN), False): "qwen2",
    ((("Split", _QWEN35), _PLAIN), False): "qwen35",
    ((("Split", _TEKKEN), _PLAIN), True): "tekken",
    ((("Split", _GPT4O), _PLAIN), False): "gpt-4o",
}


def pre_tokenizer_name(tokenizer: Mapping[str, Any], name: str) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.

    Args:
        tokenizer: the content of tokenizer.json.
        name: the user's word for it; empty to look it up.

    Raises:
        UserError: if there is no name and the rules are none that llama.cpp is known to have.
    """
    if name:
        return name
    steps = _steps(tokenizer.get("pre_tokenizer"))
    direct = bool(tokenizer["model"].get("ignore_merges"))
    if steps is not None and (steps, direct) in _NAMES:
        return _NAMES[steps, direct]
    names = ", ".join(sorted(_NAMES.values()))
    raise UserError(
        "the tokenizer's pre-tokenizer is none of those whose name in llama.cpp is known "
        f"({names}); name it with --pre, or write token ids only with --tokenizer none"
    )


def _steps(rules: Mapping[str, Any] | None) -> _Steps | None:
    """The rules as plain tuples; None where one of them has no short form."""
    if rules is None:
        return None
    parts = rules["pretokenizers"] if rules["type"] == "Sequence" else [rules]
    steps: list[tuple[object, ...]] = []
    for part in parts:
        if part["type"] == "ByteLevel" and not part.get("add_prefix_space", True):
            steps.append(("ByteLevel", bool(part.get("use_regex", True))))
        elif part["type"] == "Digits":
            steps.append(("Digits", bool(part.get("individual_digits"))))
        elif part["type"] == "Split" and part.get("behavior") == "Isolated" and not part.get("invert"):
            steps.append(("Split", part["pattern"].get("Regex")))
        else:
            return None
    return tuple(steps)
