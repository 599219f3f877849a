"""What the documentation site has beside docs/: README as its home, the commands and the Python functions.

A hook of mkdocs (`make docs`). Links from docs/ to files of the repository that are no pages are shown as code.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tracenas import config as configs
from tracenas.commands import COMMANDS
from tracenas.config.accepted import accepted
from tracenas.config.groups import groups

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(((?!https?:|#)[^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of something else."""
    home = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, text in {
        "index.md": re.sub(r"\]\(docs/", "](", home),
        "commands.md": commands(),
        "api.md": functions(),
    }.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, files: Files, **_: Any) -> str:
    """Without links that lead out of the site: their text stays."""
    here = Path(page.file.src_uri).parent

    def kept(match: re.Match[str]) -> str:
        target = match[2].partition("#")[0]
        inside = files.get_file_from_path((here / target).as_posix()) is not None
        return match[0] if inside or not target else match[1]

    return LINK.sub(kept, markdown)


def commands() -> str:
    """Every command with all of its settings, from the settings themselves."""
    parts = ["# Commands", "`tracenas COMMAND --help` shows what is usually wanted, `--help-all` everything below."]
    for name, command in COMMANDS.items():
        kind = command.kind
        parts += [f"## tracenas {name}", command.help]
        for title, names in groups(kind).items():
            if not names:
                continue
            rows = [f"| {_flag(kind, one)} | {_meaning(kind, one)} | {_default(kind, one)} |" for one in names]
            parts += [f"**{title}**", "\n".join(["| setting | meaning | default |", "|---|---|---|", *rows])]
        if kind.sections:
            rows = [f"| `{one}.KEY=VALUE` | {_cell(kind.model_fields[one].description)} |" for one in kind.sections]
            parts += ["**Further stages**", "\n".join(["| section | meaning |", "|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def _flag(kind: Any, name: str) -> str:
    positional, _ = configs.positional_setting(kind)
    return f"`{name.upper()}`" if name == positional else f"`--{name.replace('_', '-')}`"


def _meaning(kind: Any, name: str) -> str:
    field = kind.model_fields[name]
    values = accepted(field).values
    listed = f" Accepted: {', '.join(f'`{value}`' for value in values)}." if values else ""
    return _cell((field.description or "") + listed)


def _default(kind: Any, name: str) -> str:
    field = kind.model_fields[name]
    if field.is_required():
        return "required"
    return "" if field.default in (None, "") else f"`{field.default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def functions() -> str:
    """The functions of `tracenas`, from their docstrings, and the keywords that they take."""
    import tracenas

    listed = [name for name in tracenas.__all__ if callable(getattr(tracenas, name)) and name[0].islower()]
    blocks = [f"::: tracenas.api.{name}" for name in listed]
    keywords = ["::: tracenas.keywords.pruning", "::: tracenas.keywords.further", "::: tracenas.keywords.shared"]
    head = "# Python\n\nEvery function takes the settings of the command of the same name as keywords."
    return "\n\n".join([head, *blocks, "## Keywords", *keywords]) + "\n"
