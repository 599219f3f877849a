"""Options of the command line: one per setting, with what it accepts, for help texts and completion."""

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

from tracenas.config import StageConfig, positional_setting, setting_names
from tracenas.config.accepted import Accepts, accepted

__all__ = ["setting_parameters"]

_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def setting_parameters(kind: type[StageConfig]) -> list[click.Parameter]:
    """A command's arguments, and an option for each of its settings, required ones first."""
    positional, several = positional_setting(kind)
    metavar = f"{positional.upper().removesuffix('S')}..." if several else positional.upper()
    names = [name for name in setting_names(kind) if name != positional and name not in kind.sections]
    names.sort(key=lambda name: not kind.model_fields[name].is_required())
    arguments = click.Argument(
        ["arguments"],
        nargs=-1,
        metavar=f"{metavar} [KEY=VALUE]...".strip(),
        shell_complete=_completion(accepted(kind.model_fields[positional])) if positional else None,
    )
    return [arguments, *(_option(kind, name) for name in names)]


def _option(kind: type[StageConfig], name: str) -> click.Option:
    field = kind.model_fields[name]
    flag = "--" + name.replace("_", "-")
    words = [field.description or ""]
    if field.annotation in (bool, bool | None):
        off = "--" + flag.removeprefix("--no-") if name.startswith("no_") else f"--no-{flag[2:]}"
        words += ["[default: on]"] if field.default else []
        return click.Option([f"{flag}/{off}", name], is_flag=True, default=None, help=" ".join(words))
    what = accepted(field)
    if what.values and "|" not in what.metavar:
        words.append(f"Accepted: {', '.join(what.values)}.")
    if field.is_required():
        words.append("[required]")
    elif field.default not in (None, ""):
        words.append(f"[default: {field.default}]")
    return click.Option(
        [flag, name], default=None, metavar=what.placeholder, help=" ".join(words), shell_complete=_completion(what)
    )


def _completion(what: Accepts) -> _Completion:
    """Values that begin with what is typed, of a list with its last part; paths are the shell's to complete."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if what.several else ("", "", incomplete)
        values = [before + comma + value for value in what.values if value.startswith(last)]
        path = [CompletionItem(incomplete, type="file")] if what.file else []
        return [*map(CompletionItem, values), *path]

    return complete
