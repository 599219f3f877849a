"""Text that every CPython installation carries, as documents split into train and held-out.

Four kinds of document, all read from the running interpreter's standard library:

- ``topic``: one entry of ``pydoc_data.topics`` (chapters of the language reference);
- ``docs``: the docstrings of one module, each under its signature;
- ``builtin``: the docstrings of one module written in C;
- ``source``: the code of one module with its docstrings taken out.

The unit of the split is the *group*: nothing of a module whose docs or source are held out is
trained on. A topic's paragraph or a docstring that occurs twice is kept once, so that held-out
text does not repeat training text.
Run ``python corpus.py`` to see the sizes and write the two text files of the package (``--folder`` writes them
elsewhere, with ``train.txt``, the whole training text, which does not ship).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

__all__ = ["SEPARATOR", "Corpus", "Document", "build_corpus", "write_texts"]

SEPARATOR = "<|endoftext|>"
DEMO = Path(__file__).resolve().parents[2] / "src" / "tracenas" / "demo"

HELDOUT_CHARS = {"topic": 70_000, "docs": 150_000, "source": 150_000}
CALIBRATION_CHARS = {"topic": 60_000, "docs": 120_000, "source": 120_000}
SHORTEST_DOCUMENT = 200  # characters
SHORT_PASSAGE = 60  # characters; shorter ones may recur
LONGEST_SHIPPED = 30_000  # characters; keeps the held-out text spread over many modules

SKIPPED_DIRS = {"site-packages", "pydoc_data", "__pycache__", "lib2to3", "ensurepip", "__phello__"}
TEST_DIRS = {"test", "tests", "idle_test"}
SKIPPED_FILES = re.compile(r"_sysconfigdata|^antigravity|^this\.py$|bad_|badsyntax")
# fmt: off
C_MODULES = (
    "_bisect", "_collections", "_csv", "_functools", "_heapq", "_io", "_operator", "_random",
    "_struct", "array", "atexit", "binascii", "builtins", "cmath", "errno", "gc", "itertools",
    "marshal", "math", "mmap", "posix", "select", "sys", "time", "unicodedata", "zlib",
)
# fmt: on

# Lines about people and machines rather than about Python.
PERSONAL = re.compile(
    r"(?i:[\w.+-]+@[\w-]+\.\w|copyright|all rights reserved|/home/|/users/|/root/|\bguido\b"
    r"|\bhettinger\b|\bauthors?\b|__author__|__credits__|\bsourceforge\b)"
    r"|\b([Bb]y|[Tt]hanks to|[Dd]ue to|[Cc]redit to|[Ff]rom) ([A-Z][a-z]+|[A-Z]\.) [A-Z][\w.]+"
)
PLAIN_SIGNS = {"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2026": "..."}
PLAIN_SIGNS |= {"\u2014": "--", "\u2013": "-", "\u2192": "->", "\u00a0": " ", "\u2022": "*"}
NAMED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Named = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Document:
    """One text: its `kind`, the `group` it is split by, and whether it may ship."""

    kind: str
    group: str
    text: str
    shippable: bool


@dataclass(frozen=True)
class Corpus:
    """Training documents in their seeded order, the held-out ones, and a calibration sample.

    `calibration` is a subset of `train`; `heldout` shares no group with `train`.
    """

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]
    calibration: tuple[Document, ...]


class Passages:
    """Remembers the passages seen, so that each enters the corpus once."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def is_new(self, text: str) -> bool:
        """Whether `text`, blanks aside, has not been seen; it has from now on."""
        key = " ".join(text.split())
        fresh = bool(key) and key not in self._seen
        self._seen.add(key)
        return fresh


def _document(kind: str, group: str, text: str) -> Document | None:
    """The cleaned document, or None when it is too short or not plain text."""
    lines = [line.rstrip().expandtabs(4) for line in text.splitlines()]
    kept = [line for line in lines if not PERSONAL.search(line)]
    clean = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    clean = clean.replace(SEPARATOR, "")
    if len(clean) < SHORTEST_DOCUMENT:
        return None
    odd = sum(not (c.isascii() and (c.isprintable() or c == "\n")) for c in clean)
    if odd > 0.02 * len(clean):
        return None
    shippable = odd == 0 and len(kept) == len(lines) and len(clean) <= LONGEST_SHIPPED
    return Document(kind, group, clean, shippable)


def _topic_documents(seen: Passages) -> Iterator[Document]:
    """Topics, short ones first; a chapter keeps only the paragraphs its sections lack."""
    for name, text in sorted(topics.topics.items(), key=lambda item: (len(item[1]), item[0])):
        for sign, plain in PLAIN_SIGNS.items():
            text = text.replace(sign, plain)
        kept = [p for p in text.split("\n\n") if len(p) < SHORT_PASSAGE or seen.is_new(p)]
        document = _document("topic", f"topic:{name}", "\n\n".join(kept))
        if document is not None and seen.is_new(document.text):
            yield document


def _signature(node: Named, source: str) -> str:
    """The header of a definition as written, without its body: ``def f(x, y=1):``."""
    if isinstance(node, ast.Module):
        return ""
    lines = source.splitlines()[node.lineno - 1 : max(node.body[0].lineno - 1, node.lineno)]
    return textwrap.dedent("\n".join(lines)).strip()


def _docs_text(tree: ast.Module, module: str, source: str, seen: Passages) -> str:
    """The docstrings of a module in source order, each indented under its signature."""
    parts: list[str] = []
    named = [node for node in ast.walk(tree) if isinstance(node, NAMED)]
    for node in sorted(named, key=lambda n: getattr(n, "lineno", 0)):
        text = ast.get_docstring(node)
        if text is None or not seen.is_new(text):
            continue
        if isinstance(node, ast.Module):
            parts.append(f"Help on module {module}:\n\n{text}")
        else:
            parts.append(f"{_signature(node, source)}\n{textwrap.indent(text, '    ')}")
    return "\n\n".join(parts)


def _code_text(tree: ast.Module, source: str) -> str:
    """The source without its docstrings."""
    lines = source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, NAMED) or ast.get_docstring(node, clean=False) is None:
            continue
        first = node.body[0]
        for number in range(first.lineno - 1, first.end_lineno or first.lineno):
            lines[number] = ""
    return "\n".join(lines)


def _module_documents(root: Path, seen: Passages) -> Iterator[Document]:
    """Docs of every module; source of those that are neither tests nor tables."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if SKIPPED_DIRS.intersection(parts) or SKIPPED_FILES.search(path.name):
            continue
        try:
            source = path.read_text("utf-8")
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue  # test data that is wrong on purpose, or another encoding
        module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        is_test = bool(TEST_DIRS.intersection(parts))
        kinds = [("test-docs" if is_test else "docs", _docs_text(tree, module, source, seen))]
        if not is_test and parts[0] != "encodings":
            kinds.append(("source", _code_text(tree, source)))
        for kind, text in kinds:
            document = _document(kind, f"module:{module}", text)
            if document is not None and seen.is_new(text):
                yield document


def _builtin_documents(seen: Passages) -> Iterator[Document]:
    """The docstrings of C modules, their classes and their methods."""
    for name in C_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # optional in a CPython build
        parts = [f"Help on built-in module {name}:"]
        for label, value in _members(name, module):
            text = inspect.getdoc(value) or ""
            if not seen.is_new(text):
                continue
            call = getattr(value, "__text_signature__", None) or ""
            call = call.replace("$", "")
            parts.append(f"{label}{call}\n{textwrap.indent(text, '    ')}")
        document = _document("builtin", f"builtin:{name}", "\n\n".join(parts))
        if document is not None:
            yield document


def _members(name: str, module: object) -> Iterator[tuple[str, object]]:
    """(dotted name, object) of the public callables of a module and of its classes."""
    for key, value in sorted(vars(module).items()):
        if key.startswith("_") or not callable(value):
            continue
        yield f"{name}.{key}", value
        if inspect.isclass(value) and not issubclass(value, BaseException):
            for attribute, member in sorted(vars(value).items()):
                yield f"{key}.{attribute}", member


def _take(documents: Iterable[Document], chars: dict[str, int]) -> tuple[Document, ...]:
    """Documents fit to ship, picked in order until each kind has its share of characters."""
    left = dict(chars)
    picked = []
    for document in documents:
        if document.shippable and left.get(document.kind, 0) >= len(document.text):
            left[document.kind] -= len(document.text)
            picked.append(document)
    return tuple(picked)


def build_corpus(seed: int = 0) -> Corpus:
    """Collect, clean, deduplicate and split; the same interpreter gives the same corpus."""
    seen = Passages()
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = [*_topic_documents(seen), *_module_documents(root, seen)]
    documents += _builtin_documents(seen)
    random.Random(seed).shuffle(documents)
    heldout = _take(documents, HELDOUT_CHARS)
    held_groups = {d.group for d in heldout}
    train = tuple(d for d in documents if d.group not in held_groups)
    return Corpus(train, heldout, _take(train, CALIBRATION_CHARS))


def write_texts(corpus: Corpus, folder: Path = DEMO, names: Iterable[str] = ("heldout", "calibration")) -> None:
    """Write ``heldout.txt`` and so on, documents parted by a separator line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        documents: tuple[Document, ...] = getattr(corpus, name)
        text = f"\n{SEPARATOR}\n".join(d.text for d in documents) + "\n"
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")


def main() -> None:
    """Write the texts and print characters and documents per kind."""
    parser = argparse.ArgumentParser(description="Texts of the demo model.")
    parser.add_argument("--folder", type=Path, help="write heldout.txt, calibration.txt and train.txt there")
    folder: Path | None = parser.parse_args().folder
    corpus = build_corpus()
    if folder is None:
        write_texts(corpus)
    else:
        write_texts(corpus, folder, ("heldout", "calibration", "train"))
    for name in ("train", "heldout", "calibration"):
        documents: tuple[Document, ...] = getattr(corpus, name)
        for kind in sorted({d.kind for d in documents}):
            of_kind = [d for d in documents if d.kind == kind]
            print(f"{name:12} {kind:10} {len(of_kind):5} {sum(len(d.text) for d in of_kind):9,}")


if __name__ == "__main__":
    main()
