"""tokenizer.json as GGUF metadata: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece's BPE (Llama 2, Gemma)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.exporters.gguf.pretokenizers import pre_tokenizer_name
from tracenas.models.checkpoints.base_files import has_vocabulary
from tracenas.rundir import read_json

__all__ = ["Vocabulary", "gguf_vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "▁"
_IDS_ONLY = "no tokenizer: token ids only; programs that take text (llama-cli, Ollama) cannot use this file"


@dataclass(frozen=True)
class Vocabulary:
    """Metadata below `tokenizer`, and what the user must know of it.

    Args:
        text: whether text can be tokenized with it.
    """

    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()
    text: bool = True


def gguf_vocabulary(
    directory: Path, size: int, config: Mapping[str, Any], *, pre: str = "", use: bool = True
) -> Vocabulary:
    """The checkpoint's own tokenizer, filled up with unused tokens to the rows of the embeddings.

    Tokens that were added beyond those rows (Gemma 3's `<image_soft_token>` in its text models) are left out, and told.

    Args:
        size: rows of the embeddings.
        config: config.json, for special tokens that the tokenizer does not name.
        pre: llama.cpp's name of the pre-tokenizer; looked up if empty.
        use: False to write none.

    Raises:
        UserError: for a tokenizer that llama.cpp has not, naming what would be accepted.
    """
    path = directory / "tokenizer.json"
    if not use or not (path.is_file() or has_vocabulary(directory)):
        return Vocabulary({"tokenizer.ggml.model": "none"}, (_IDS_ONLY,), text=False)
    if not path.is_file():
        raise UserError(
            f"{directory}: the tokenizer has another form; AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
            " writes the tokenizer.json that is read here (or --tokenizer none for token ids only)"
        )
    data = read_json(path)
    try:
        config_file = directory / "tokenizer_config.json"
        settings: Mapping[str, Any] = read_json(config_file) if config_file.is_file() else {}
        template = _template(directory, settings)
        vocabulary = _vocabulary(data, settings, size, config, pre)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer of the tokenizers library ({error!r})") from error
    if template:
        vocabulary.metadata["tokenizer.chat_template"] = template
    return vocabulary


def _vocabulary(
    data: Mapping[str, Any], settings: Mapping[str, Any], size: int, config: Mapping[str, Any], pre: str
) -> Vocabulary:
    model = data["model"]
    if model.get("type") != "BPE":
        raise UserError(
            f"the tokenizer is of type {model.get('type')}, llama.cpp has it not; accepted: BPE, byte-level or with "
            "byte fallback (or --tokenizer none for token ids only)"
        )
    added = {entry["id"]: entry for entry in data.get("added_tokens", ())}
    tokens = {i: token for token, i in model["vocab"].items()} | {i: e["content"] for i, e in added.items()}
    rowless = {i: tokens.pop(i) for i in sorted(added) if i >= size}
    if max(tokens) >= size:
        raise UserError(f"the tokenizer has token {max(tokens)}, the model's embeddings have {size} rows")
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    metadata: dict[str, Any] = {}
    if model.get("byte_fallback"):
        kind, notes = _sentencepiece(data, tokens, merges, size)
    else:
        metadata["tokenizer.ggml.pre"] = pre_tokenizer_name(data, pre)
        kind, notes = _byte_level(data, merges)
    if rowless:
        notes += (f"left out, the embeddings have no row for them: {', '.join(rowless.values())}",)
    metadata |= {
        "tokenizer.ggml.tokens": [tokens.get(i, f"[PAD{i}]") for i in range(size)],
        "tokenizer.ggml.token_type": [_type(tokens.get(i), added.get(i), model) for i in range(size)],
        **kind,
        **_special(data, settings, {token: i for i, token in tokens.items()}, config),
    }
    return Vocabulary(metadata, notes)


def _type(token: str | None, added: Mapping[str, Any] | None, model: Mapping[str, Any]) -> int:
    if token is None:
        return _UNUSED
    if model.get("byte_fallback"):
        if token == model.get("unk_token"):
            return _UNKNOWN
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return _BYTE
    if added is None:
        return _NORMAL
    return _CONTROL if added.get("special") else _USER_DEFINED


def _byte_level(data: Mapping[str, Any], merges: list[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    normalizer = (data.get("normalizer") or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise UserError(
            f"the tokenizer's normalizer {normalizer} has no counterpart in llama.cpp; accepted: none, NFC "
            "(or --tokenizer none for token ids only)"
        )
    notes = ("llama.cpp does not normalize text to NFC, as the tokenizer does: give it normalized text",)
    kind = {"tokenizer.ggml.model": "gpt2", **({"tokenizer.ggml.merges": merges} if merges else {})}
    return kind, notes if normalizer else ()


def _sentencepiece(
    data: Mapping[str, Any], tokens: Mapping[int, str], merges: list[str], size: int
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """llama.cpp merges the pair whose token has the highest score: minus the rank of the first merge that makes it."""
    prefix = _space_prefix(data)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(pairs, start=1):
        rank.setdefault(left + right, place)
    merged, vocabulary = set(pairs), set(tokens.values())
    other = sum(
        any((t[:k], t[k:]) not in merged and {t[:k], t[k:]} <= vocabulary for k in range(1, len(t))) for t in rank
    )
    notes = (
        f"{other:,} of {len(rank):,} merged tokens can be made from pairs that the tokenizer does not merge, but "
        "llama.cpp does: rare words may get other tokens",
    )
    kind = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": [float(-rank.get(tokens.get(i, ""), 0)) for i in range(size)],
        "tokenizer.ggml.add_space_prefix": prefix,
    }
    return kind, notes if other else ()


def _space_prefix(data: Mapping[str, Any]) -> bool:
    """Whether a space is put before the text; refuses rules that SentencePiece has not."""
    normalizer, rules = data.get("normalizer"), data.get("pre_tokenizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prepend = {"type": "Prepend", "prepend": _SPACE}
    split = rules is not None and rules["type"] == "Split" and rules["pattern"] == {"String": " "}
    if all(s in (spaces, prepend) for s in steps) and (rules is None or split) and spaces in steps:
        return prepend in steps
    if not steps and rules is not None and rules["type"] == "Metaspace":
        return bool(rules.get("prepend_scheme", "always") != "never")
    raise UserError(
        "the tokenizer's normalizer and pre-tokenizer are none that SentencePiece has (spaces as ▁, one put before the "
        "text or not); use --tokenizer none for token ids only"
    )


def _special(
    data: Mapping[str, Any], settings: Mapping[str, Any], ids: Mapping[str, int], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Ids of special tokens, and which are put around a text."""
    metadata: dict[str, Any] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = settings.get(f"{name}_token")
        text = token.get("content") if isinstance(token, Mapping) else token
        number = ids.get(text) if text is not None else config.get(f"{name}_token_id")
        if isinstance(number, list):
            number = number[0] if number else None
        if number is not None:
            metadata[f"tokenizer.ggml.{key}_token_id"] = int(number)
    around = _template_processing(data.get("post_processor") or {})
    for name, processed in zip(("bos", "eos"), around, strict=True):
        added = settings.get(f"add_{name}_token", False) if processed is None else processed
        metadata[f"tokenizer.ggml.add_{name}_token"] = bool(added)
    return metadata


def _template_processing(processor: Mapping[str, Any]) -> tuple[bool | None, bool | None]:
    """Whether a special token is put before and behind a text; None where nothing is said of it."""
    for part in processor.get("processors", [processor] if processor else []):
        if part["type"] == "TemplateProcessing":
            kinds = [next(iter(piece)) for piece in part["single"]]
            return kinds[0] == "SpecialToken", kinds[-1] == "SpecialToken"
    return None, None


def _template(directory: Path, settings: Mapping[str, Any]) -> str:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next((t["template"] for t in template if t.get("name") == "default"), "")
    return template or ""
