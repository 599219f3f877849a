"""The `tracenas` command lines of README, docs and recipes, and the commands that each stands for."""

import itertools
import re
import shlex
from pathlib import Path

from tracenas import commands

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "log.md"),
    *sorted((ROOT / "src/tracenas/recipes").glob("*.yaml")),
]
_LAUNCHER = r"(?:torchrun|accelerate launch) .*-m tracenas "
_COMMAND = re.compile(
    rf"^(?: {{4,}}|# *)(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(?:tracenas +|({_LAUNCHER}))([a-z].*)$", re.MULTILINE
)

_YAML = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def documented() -> list[tuple[str, str]]:
    """(page, command line without `tracenas`): indented blocks of the pages, comments of the recipes.

    A line that starts several processes is whole: `torchrun … -m tracenas eval …`.
    """
    lines = []
    for page in PAGES:
        text = re.sub(r"\\\n[ #]*", " ", page.read_text(encoding="utf-8"))
        lines += [(page.name, start + line) for start, line in _COMMAND.findall(text)]
    return lines


def settings_file(name: str) -> str:
    """The text of a settings file that a page shows, in a block that begins with its name: `# run.yaml`."""
    blocks = [block for page in PAGES for block in _YAML.findall(page.read_text(encoding="utf-8"))]
    (text,) = (block for block in blocks if block.startswith(f"# {name}\n"))
    return str(text)


def variants(line: str) -> list[list[str]]:
    """The words of every command that a line stands for: `[optional]` parts left out and put in, each `a|b`."""
    line = re.sub(r"\s+#\s.*", "", line.rpartition(" -m tracenas ")[2]).replace("…", "")
    both = [re.sub(r"\[[^\]]*\]", "", line), re.sub(r"[\[\]]", "", line)]
    out = []
    for text in dict.fromkeys(" ".join(text.split()) for text in both):
        words = [word.split("|") if "|" in word else [word] for word in shlex.split(text)]
        out += [list(choice) for choice in itertools.product(*words)]
    return out


def command_name(words: list[str]) -> str:
    """The name of a command line's command: one word or two."""
    two = " ".join(words[:2])
    return two if two in commands.COMMANDS else words[0]
