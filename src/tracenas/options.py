"""Options of the command line: one per setting, with what it accepts, for help texts and completion."""

from collections.abc import Callable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from tracenas.config import StageConfig, positional_setting, setting_names
from tracenas.config.accepted import Accepts, accepted
from tracenas.config.groups import NEEDED, WANTED, groups
from tracenas.errors import UserError
from tracenas.recipes import recipe, recipes

__all__ = ["TAKES_RECIPES", "help_all", "recipe_option", "recipe_path", "setting_parameters", "write_groups"]

TAKES_RECIPES = ("plan", "recover", "run")
"""Commands that settings files of the package are for."""

_ALL = "tracenas.options.all"
"""In click's `ctx.meta`: whether help shows every setting."""

_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def write_groups(
    kind: type[StageConfig], options: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """What is needed and wanted (after `--help-all` every setting), further stages, and the options that are none."""
    records = {option.name: option.get_help_record(ctx) for option in options if isinstance(option, click.Option)}
    sections = {}
    for title, names in groups(kind).items():
        rows = [records.pop(name, None) or (_placeholder(kind), _described(kind, name)) for name in names]
        if title in (NEEDED, WANTED) or ctx.meta.get(_ALL):
            sections[title] = rows
    sections["Further stages"] = [(f"{name}.KEY=VALUE", _described(kind, name)) for name in kind.sections]
    sections["Settings files and output"] = [record for record in records.values() if record]
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def recipe_option() -> click.Option:
    """`--recipe`: a settings file that comes with the package."""
    names = [one.name for one in recipes()]
    what = Accepts(tuple(names), metavar="NAME")
    help_text = "Settings that come with the package (`tracenas recipes`); those of the command line replace them."
    return click.Option(["--recipe"], metavar="NAME", help=help_text, shell_complete=_completion(what))


def recipe_path(name: str, config: Path | None) -> Path:
    """The settings file of a recipe.

    Raises:
        UserError: if there is none of that name, or a file was given beside it.
    """
    if config is not None:
        raise UserError(f"recipe {name} and config {config}: both are settings files; give one of them")
    return recipe(name).path


def help_all() -> click.Option:
    """`--help-all`: help with every setting."""
    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_show_all,
        help="Show every setting and exit.",
    )


def _show_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def _described(kind: type[StageConfig], name: str) -> str:
    """What a setting is, and which values it accepts."""
    field = kind.model_fields[name]
    what = accepted(field)
    if not what.values or "|" in what.metavar:
        return field.description or ""
    return f"{field.description} {'Names' if what.file else 'Accepted'}: {', '.join(what.values)}."


def _placeholder(kind: type[StageConfig]) -> str:
    """What stands for the positional setting; empty if there is none."""
    name, several = positional_setting(kind)
    text = f"{name.upper().removesuffix('S')}..." if several else name.upper()
    return f"[{text}]" if name and name == kind.optional_positional else text


def setting_parameters(kind: type[StageConfig]) -> list[click.Parameter]:
    """A command's arguments, and an option for each of its settings in the order of their groups."""
    positional = positional_setting(kind)[0]
    arguments = click.Argument(
        ["arguments"],
        nargs=-1,
        metavar=" ".join(
            filter(None, (_placeholder(kind), kind.behind.upper(), "[SECTION.KEY=VALUE]..." * bool(kind.sections)))
        ),
        shell_complete=_argument_completion(kind),
    )
    names = [name for members in groups(kind).values() for name in members if name != positional]
    former = [name for name in kind.former if kind.former[name] in names and name not in names]
    return [
        arguments,
        *(_option(kind, name) for name in names),
        *(click.Option(["--" + name.replace("_", "-"), name], hidden=True) for name in former),
    ]


def _option(kind: type[StageConfig], name: str) -> click.Option:
    field = kind.model_fields[name]
    flag = "--" + name.replace("_", "-")
    words = [_described(kind, name)]
    if field.annotation in (bool, bool | None):
        off = "--" + flag.removeprefix("--no-") if name.startswith("no_") else f"--no-{flag[2:]}"
        words += ["[default: on]"] if field.default else []
        return click.Option([f"{flag}/{off}", name], is_flag=True, default=None, help=" ".join(words))
    what = accepted(field)
    if field.is_required():
        words.append("[required]")
    elif field.default not in (None, "", ()):
        words.append(f"[default: {field.default}]")
    return click.Option(
        [flag, name],
        default=None,
        multiple=field.annotation == tuple[str, ...],
        metavar=what.placeholder,
        help=" ".join(words),
        shell_complete=_completion(what),
    )


def _argument_completion(kind: type[StageConfig]) -> _Completion:
    """The positional setting's values, and settings of sections: `recover.tokens=`."""
    positional = positional_setting(kind)[0]
    files = _completion(accepted(kind.model_fields[positional]) if positional else Accepts())
    keys = [f"{name}.{key}=" for name, section in kind.sections.items() for key in setting_names(section)]

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(key) for key in keys if incomplete and key.startswith(incomplete)]
        return found or files(ctx, param, incomplete)

    return complete


def _completion(what: Accepts) -> _Completion:
    """Values that begin with what is typed, of a list with its last part; else paths, which shells complete."""

    def complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",") if what.several else ("", "", incomplete)
        values = [before + comma + value for value in what.values if value.startswith(last)]
        path = [CompletionItem(incomplete, type="file")] if what.file and not values else []
        return [*map(CompletionItem, values), *path]

    return complete
