"""Write src/tracenas/keywords, the keywords of `tracenas`'s functions, from the settings of the commands.

    python scripts/keywords.py [--check]

`--check` writes nothing and fails where a file is not what would be written.
"""

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

import tracenas.api
from tracenas import config
from tracenas.commands import COMMANDS
from tracenas.config.accepted import Accepts, type_parts
from tracenas.config.effort import EffortConfig
from tracenas.config.shared import CalibrationConfig, SpaceConfig, StageConfig, TracedConfig, WindowsConfig
from tracenas.config.tracking import TrackedConfig

TARGET = Path(__file__).parents[1] / "src" / "tracenas" / "keywords"
COMMAND_OF = {
    "plan": "plan",
    "search": "search",
    "run": "run",
    "best": "best",
    "score": "score",
    "measure": "measure",
    "sensitivity": "sensitivity",
    "prune": "prune",
    "select_calibration": "select-calibration",
    "evaluate": "eval",
    "report": "report",
    "recover": "recover",
    "bench": "bench",
    "export": "export",
    "push": "push",
    "sparsify": "sparsify",
    "metric_search": "metric search",
    "study": "study",
    "ablation": "study ablation",
}
"""Functions of `tracenas.api` and the commands whose settings they take."""

PRUNING = ("plan", "search", "run", "best", "score", "sensitivity", "prune", "select_calibration")
SHARED = (StageConfig, SpaceConfig, WindowsConfig, TracedConfig, TrackedConfig, EffortConfig, CalibrationConfig)
NUMBERS = ("N|full", "SIZE", "SHARE|N:M", "COUNT")
"""What stands for values in help texts that may be numbers, too."""


def typed(field: FieldInfo) -> str:
    """The type of a keyword: all that its setting accepts."""
    found, marks = type_parts(field.annotation)
    marks = [*field.metadata, *marks]
    accepts = next((mark for mark in marks if isinstance(mark, Accepts)), Accepts())
    converted = any(isinstance(mark, BeforeValidator) for mark in marks)
    names: list[str] = []
    for kind in found:
        if get_origin(kind) is Literal:
            values = get_args(kind)
            names += ["str"] if "bf16" in values else [f"Literal[{', '.join(map(repr, values))}]"]
            names += ["bool"] if {"on", "off"} <= set(values) else []
        elif kind is str:
            names += ["str", *["Path"] * accepts.file, *["Sequence[str]"] * converted]
            names += ["float"] if accepts.metavar in NUMBERS else []
        elif kind is Path:
            names += ["str", "Path"]
        elif get_origin(kind) is tuple:
            names += ["Sequence[str | Path]"] if accepts.file else ["str", "Sequence[str]", "Mapping[str, str]"]
        elif get_origin(kind) is dict:
            names.append("Mapping[str, Any]")
        else:
            names.append("None" if kind is type(None) else kind.__name__)
    names = list(dict.fromkeys(names))
    return " | ".join([name for name in names if name != "None"] + [name for name in names if name == "None"])


def own(kind: type[StageConfig]) -> list[str]:
    """Fields that a class adds to those of its bases."""
    return [name for name in inspect.get_annotations(kind) if name in kind.model_fields]


def title(kind: type[StageConfig]) -> str:
    """The name of a shared class's keywords."""
    return kind.__name__.removesuffix("Config") + "Keywords"


def block(name: str, bases: list[str], doc: str, fields: dict[str, FieldInfo]) -> str:
    """One class."""
    lines = [f"class {name}({', '.join(bases or ['TypedDict'])}, total=False):", f'    """{doc}"""', ""]
    return "\n".join([*lines, *(f"    {key}: {typed(field)}" for key, field in fields.items())]).rstrip()


def shared(kind: type[StageConfig], left_out: set[str]) -> list[type[StageConfig]]:
    """The shared classes of a command all of whose settings it has as keywords; of nested ones the narrowest."""
    whole = [base for base in SHARED if issubclass(kind, base) and not left_out & set(base.model_fields)]
    return [base for base in whole if not any(other is not base and issubclass(other, base) for other in whole)]


def shared_blocks() -> list[str]:
    """Classes that several functions' are built on."""
    out = []
    for kind in SHARED:
        bases = [title(base) for base in kind.__bases__ if base in SHARED]
        fields = {name: kind.model_fields[name] for name in own(kind)}
        out.append(block(title(kind), bases, (kind.__doc__ or "").split("\n")[0], fields))
    return out


def function_blocks(functions: Sequence[str]) -> list[str]:
    """A class of every function; a run's is a search's and more."""
    out = []
    for function in functions:
        command = COMMAND_OF[function]
        kind = COMMANDS[command].kind
        left_out = set(inspect.signature(getattr(tracenas.api, function)).parameters) | set(kind.without)
        bases = [title(base) for base in shared(kind, left_out)]
        have = {name for base in shared(kind, left_out) for name in base.model_fields} | left_out
        if function == "run":
            bases, have = ["SearchOptions"], have | set(config.SearchConfig.model_fields)
        fields = {name: field for name, field in kind.model_fields.items() if name not in have}
        name = "".join(part.title() for part in function.split("_")) + "Options"
        out.append(block(name, bases, f"Of `tracenas.{function}`: `tracenas {command}`.", fields))
    return out


def written(doc: str, blocks: list[str], further: str = "") -> str:
    """A module."""
    body = "\n\n\n".join(blocks).replace("'", '"')
    names = sorted(line.split("(")[0].removeprefix("class ") for line in body.splitlines() if line.startswith("class "))
    collections = [name for name in ("Mapping", "Sequence") if f"{name}[" in body]
    typing = [name for name in ("Any", "Literal", "TypedDict") if re.search(rf"\b{name}\b", body)]
    lines = [f'"""{doc} Written by scripts/keywords.py."""', ""]
    lines += [f"from collections.abc import {', '.join(collections)}"] if collections else []
    lines += ["from pathlib import Path"] if "Path" in body else []
    lines += [f"from typing import {', '.join(typing)}", *([f"\n{further}"] if further else [])]
    public = ",\n".join(f'    "{name}"' for name in names)
    return "\n".join([*lines, f"\n__all__ = [\n{public},\n]", "", "", body, ""])


def files() -> dict[str, str]:
    """Name → text."""
    out = {
        "__init__.py": '"""Keywords of the functions of `tracenas`: the settings of their commands."""\n',
        "shared.py": written("Keywords that several functions have.", shared_blocks()),
    }
    later = [name for name in COMMAND_OF if name not in PRUNING]
    for name, doc, functions in (
        ("pruning", "Keywords of functions that search and prune.", PRUNING),
        ("further", "Keywords of all other functions.", later),
    ):
        blocks = function_blocks(functions)
        bases = [title(kind) for kind in SHARED if any(re.search(rf"\b{title(kind)}\b", one) for one in blocks)]
        listed = ", ".join(sorted(bases))
        if len(bases) > 4:
            listed = "(\n" + "".join(f"    {one},\n" for one in sorted(bases)) + ")"
        out[f"{name}.py"] = written(doc, blocks, f"from tracenas.keywords.shared import {listed}")
    return out


def main() -> None:
    """Write the files, or check them."""
    for name, text in files().items():
        path = TARGET / name
        if "--check" not in sys.argv[1:]:
            TARGET.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} is old: python scripts/keywords.py")


if __name__ == "__main__":
    main()
