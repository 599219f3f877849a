"""What a checkpoint takes over from its base beside weights: the files of the tokenizer and of generation, its licence.

They are copied byte for byte. Saved again through transformers they may lose spaces (byte-level files under the name
of a SentencePiece class), gain a token that the embeddings have not, and no longer load under transformers 4.
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tracenas.rundir import read_json

__all__ = ["GENERATION", "LICENCE", "TAKEN_OVER", "BaseFiles", "copied_files", "has_vocabulary"]

GENERATION = "generation_config.json"
_SETTINGS = "tokenizer_config.json"
_VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.*.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "tokenizer.model.*",
    "*.tiktoken",
    "tekken.json",
)
_OTHERS = (
    _SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    GENERATION,
)
LICENCE = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
"""What may have to go wherever the weights or what is made of them go."""
TAKEN_OVER = (*_VOCABULARIES, *_OTHERS, *LICENCE)
"""Patterns of the files that are taken over."""
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
"""transformers 4's and 5's name (without `Fast`) of the class that is what tokenizer.json says."""


@dataclass(frozen=True)
class BaseFiles:
    """A base's directory, whose files go into what is made of it.

    Args:
        tokenizer_class: transformers' class that reads the tokenizer there; empty if there is none.
    """

    directory: Path
    tokenizer_class: str = ""

    @property
    def config(self) -> dict[str, Any]:
        """config.json as it is on disk."""
        config: dict[str, Any] = read_json(self.directory / "config.json")
        return config

    def copy(self, target: Path, *, stock: bool) -> None:
        """Copy the files; of tokenizer_config.json what would not be understood is said in other words.

        Args:
            target: an existing directory.
            stock: whether transformers 4 can load the checkpoint. Otherwise its `model_type` is not the base's, by
                which transformers picks the tokenizer's class, so the class is named.
        """
        for path in copied_files(self.directory):
            place = target / path.relative_to(self.directory)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
        settings = target / _SETTINGS
        if stock and settings.is_file():
            text = settings.read_text(encoding="utf-8")
            if (changed := _for_version_4(text)) != text:
                settings.write_text(changed, encoding="utf-8")
        elif not stock and self.tokenizer_class:
            _name_class(settings, self.tokenizer_class)


def copied_files(directory: Path) -> list[Path]:
    """The files of a directory that are copied, its tokenizer's code included."""
    paths = {path for name in TAKEN_OVER for path in directory.glob(name) if path.is_file()}
    return sorted(paths) + list(_code(directory))


def has_vocabulary(directory: Path) -> bool:
    """Whether a directory holds a tokenizer's vocabulary, in whatever form, or code that may make one."""
    return any(fnmatch(p.name, name) for p in directory.iterdir() for name in _VOCABULARIES) or bool(
        _auto_map(directory)
    )


def _auto_map(directory: Path) -> list[str]:
    """`module.Class` of the tokenizers that tokenizer_config.json names."""
    path = directory / _SETTINGS
    settings = read_json(path) if path.is_file() else {}
    auto_map = settings.get("auto_map") if isinstance(settings, Mapping) else None
    classes = auto_map.get("AutoTokenizer") if isinstance(auto_map, Mapping) else auto_map
    return [name for name in classes or () if isinstance(name, str)]


def _code(directory: Path) -> Iterator[Path]:
    """The tokenizer's own modules and those that they import from beside them."""
    from transformers.dynamic_module_utils import get_relative_import_files

    paths = {directory / f"{name.rpartition('.')[0]}.py" for name in _auto_map(directory) if "--" not in name}
    for path in [path for path in paths if path.is_file()]:
        paths |= {Path(file) for file in get_relative_import_files(path)}
    yield from (path for path in sorted(paths) if path.is_file() and path.parent == directory)


def _for_version_4(text: str) -> str:
    """tokenizer_config.json with version 5's name of the generic class and of further special tokens in version 4's."""
    text = re.sub(r'("tokenizer_class"\s*:\s*)"TokenizersBackend"', r'\1"PreTrainedTokenizerFast"', text)
    return re.sub(r'"extra_special_tokens"(\s*:\s*\[)', r'"additional_special_tokens"\1', text)


def _name_class(path: Path, name: str) -> None:
    settings = read_json(path) if path.is_file() else {}
    stated = str(settings.get("tokenizer_class", "")).removesuffix("Fast")
    if stated != name.removesuffix("Fast") and not (stated in _GENERIC and name in _GENERIC):
        text = json.dumps({**settings, "tokenizer_class": name}, indent=2, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
