"""What the documents name exists: files behind links, headings behind anchors, source files, dotted names."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md")]
"""The log stays as it was written: it names files that have moved since."""

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
SOURCE = re.compile(r"`([a-z_0-9]+(?:/[a-z_0-9A-Z]+)+\.py)(?::[a-z_]+)?`")
DOTTED = re.compile(r"`(tracenas(?:\.[A-Za-z_][A-Za-z_0-9]*)+)[`(\[]")


def anchors(page: Path) -> set[str]:
    """The names that headings of a page get on the web."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    missing = []
    for target in (a or b for a, b in LINK.findall(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            missing.append(target)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_source_files_that_are_named_exist(page: Path) -> None:
    roots = (ROOT, ROOT / "src" / "tracenas", ROOT / "src")
    named = {n for n in SOURCE.findall(page.read_text(encoding="utf-8")) if "NAME" not in n and "transformers" not in n}
    assert not [name for name in sorted(named) if not any((root / name).exists() for root in roots)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_dotted_names_can_be_imported(page: Path) -> None:
    names = sorted(set(DOTTED.findall(page.read_text(encoding="utf-8"))) - entry_point_groups())
    assert not [name for name in names if not importable(name)]


def importable(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def entry_point_groups() -> set[str]:
    """`tracenas.KIND` of every registry: a group of plug-ins, no module."""
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "tracenas").rglob("*.py"))
    return {f"tracenas.{kind}" for kind in re.findall(r"Registry(?:\[[^=]*\])?\(\s*\"(\w+)\"", sources)}


def test_readme_is_one_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120 and len(text.split()) <= 900
