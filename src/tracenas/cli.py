"""The command line: a command reads its settings, calls its stage and prints what comes back; nothing else."""

import io
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from tracenas.commands import COMMANDS, Command
from tracenas.error_log import ERROR_LOG, error_log, log_beside, traceback_place
from tracenas.errors import CheckFailed, UserError, catchable, disk_failures, first_line
from tracenas.messages import LEVELS, chosen_level, on_stderr
from tracenas.process import discard_output, is_first, terminable
from tracenas.registry import did_you_mean

__all__ = ["COMMANDS", "main"]


class _Commands(click.Group):
    """Commands whose settings are imported when they are asked for, so that `--help` is quick."""

    prefix = ""
    """The words before this group's commands: `metric ` for `metric search`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        words = [name.removeprefix(self.prefix).split()[0] for name in COMMANDS if name.startswith(self.prefix)]
        return list(dict.fromkeys(words))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = self.prefix + cmd_name
        if name in COMMANDS:
            return _command(name, COMMANDS[name])
        commands = self.list_commands(ctx)
        if cmd_name not in commands:
            raise click.UsageError(f"no command '{name}': {did_you_mean(cmd_name, commands)}")
        group = _Commands(cmd_name, help=f"Accepted: {name} {{{','.join(_words(name))}}}.")
        group.prefix = f"{name} "
        return group

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(n, command.help) for n, command in COMMANDS.items() if n.startswith(self.prefix)])


class _Leaf(click.Command):
    """A command; one that is also the first word of others (`study`, `study ablation`) hands over to them."""

    kind: Any
    """The class of its settings."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        further = f"{self.name} {args[0]}" if args else ""
        if further in COMMANDS:
            leaf = _command(further, COMMANDS[further])
            return leaf.make_context(further, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from tracenas.options import write_groups

        write_groups(self.kind, self.get_params(ctx), ctx, formatter)


def _words(group: str) -> list[str]:
    return [name.split()[-1] for name in COMMANDS if name.startswith(f"{group} ")]


def _command(name: str, command: Command) -> click.Command:
    from tracenas import config as configs
    from tracenas.options import TAKES_RECIPES, help_all, recipe_option, recipe_path, setting_parameters

    kind = command.kind
    params: list[click.Parameter] = [
        *setting_parameters(kind),
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            metavar="PATH",
            help="YAML file with settings; those of the command line replace them.",
        ),
        *([recipe_option()] if name in TAKES_RECIPES else []),
        click.Option(["--json", "json_output"], is_flag=True, help="Print one JSON object instead of tables."),
        *_loudness(),
        help_all(),
    ]

    def call(
        arguments: tuple[str, ...], config: Path | None, json_output: bool, verbose: bool, quiet: bool, **options: Any
    ) -> None:
        above = click.get_current_context().find_root().params
        level = chosen_level(verbose=verbose or above["verbose"], quiet=quiet or above["quiet"])
        if (named := options.pop("recipe", None)) is not None:
            config = recipe_path(named, config)
        stored = configs.current_names(kind, _yaml(config, name)) if config is not None else {}
        here = configs.current_names(kind, _values(kind, arguments, options))
        settings = configs.build(kind, _merged(kind, stored, here), inherited=stored.keys() - here.keys())
        first = is_first(name, tuple(n for n, c in COMMANDS.items() if c.parallel))
        with (
            on_stderr(level if first else LEVELS["error"]),
            error_log(_log_path(command, settings)),
            disk_failures(),
            catchable(),
        ):
            result = command(settings)
            if first and json_output:
                click.echo(json.dumps(result.to_json(), allow_nan=False))
            elif first:
                result.show()
            sys.stdout.flush()

    leaf = _Leaf(name, callback=call, params=params, help=command.help)
    leaf.kind = kind
    return leaf


def _loudness() -> list[click.Parameter]:
    """`-v` and `-q`, of every command and before it."""
    return [
        click.Option(["-v", "--verbose"], is_flag=True, help="Tell more on stderr."),
        click.Option(["-q", "--quiet"], is_flag=True, help="Tell nothing but errors on stderr."),
    ]


def _log_path(command: Command, settings: Any) -> Path | None:
    """Where unexpected errors are kept: OUT/error.log, beside an OUT that is a file, else nowhere."""
    out: Path | None = getattr(settings, "out", None)
    if out is None:
        return None
    return log_beside(out) if command.file else out / ERROR_LOG


def _merged(kind: Any, stored: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Settings of a YAML file with those of the command line, which win; a section's are joined."""
    for name in kind.sections:
        if name in stored and stored[name] is None:  # `bench:` with nothing below it: the stage, with its defaults
            stored[name] = {}
        if isinstance(here.get(name), dict) and isinstance(stored.get(name), dict):
            here[name] = {**stored[name], **here[name]}
    return {**stored, **here}


def _values(kind: Any, arguments: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """Settings from `key=value`, then options; later ones win."""
    from tracenas.config import positional_setting

    values: dict[str, Any] = {}
    plain: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        section, dot, setting = key.replace("-", "_").partition(".")
        if equals and dot and section in kind.sections and not Path(argument).exists():
            values[section] = {**(values.get(section) or {}), setting: _scalar(value)}
        elif equals and key.replace("-", "_").isidentifier() and not Path(argument).exists():
            values[key.replace("-", "_")] = _scalar(value)
        else:
            plain.append(argument)
    positional, several = positional_setting(kind)
    if plain and positional:
        values[positional], plain = (tuple(plain), []) if several else (plain[0], plain[1:])
    if plain and kind.behind:
        values[kind.behind], plain = plain[0], plain[1:]
    if plain:
        raise UserError(
            f"unexpected argument '{plain[0]}'; settings are options, such as --out PATH; --help lists them"
        )
    values.update({k: v for k, v in options.items() if v not in (None, ())})
    return values


def _scalar(text: str) -> Any:
    """`true`, `null` and lists as YAML reads them; everything else as it stands, for the settings to check."""
    return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def _yaml(path: Path, command: str) -> dict[str, Any]:
    from tracenas.config import current_names
    from tracenas.pipeline.resume import KIND, given_settings
    from tracenas.settings import read_settings

    stored = read_settings(path, what="config")
    kind, data = stored.get(KIND, command), given_settings(stored)  # of a run directory's config.yaml
    reads = COMMANDS[command].kind.reads
    if kind not in (command, *reads) and not {kind, command} <= {"run", "search"}:
        raise UserError(f"config {path}: settings of `tracenas {kind}`, not of `tracenas {command}`")
    reads_part = reads or (kind, command) == ("run", "search")
    return _as_read(current_names(COMMANDS["run"].kind, data), command) if reads_part else data


def _as_read(settings: dict[str, Any], command: str) -> dict[str, Any]:
    """What a command has of the settings of a run, or of a recovery, which becomes its section."""
    from tracenas.config import setting_names

    if "method" in settings and "params" not in settings:
        model = {"model": settings.pop("model")} if "model" in settings else {}
        return {**model, "recover": {k: v for k, v in settings.items() if k not in ("out", "resume")}}
    own, of_run = (set(setting_names(COMMANDS[name].kind)) for name in (command, "run"))
    return {k: v for k, v in settings.items() if k in own or k not in of_run}


@click.group(
    cls=_Commands,
    params=_loudness(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="tracenas")
def app(**_: bool) -> None:
    """Make large language models smaller: training-free search for a sub-network, a checkpoint that loads anywhere."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 2 wrong input, 130 interrupted, 1 anything else."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show does not lose a result
            stream.reconfigure(errors="backslashreplace")
    sys.exit(invoke(list(sys.argv[1:] if argv is None else argv)))


def invoke(argv: list[str]) -> int:
    """Run one command line and return its exit status; SIGTERM ends it like Ctrl-C."""
    with terminable():
        return _invoked(argv)


def _invoked(argv: list[str]) -> int:
    try:
        _check_unicode(argv)
        result = app.main(args=argv, prog_name="tracenas", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        click.echo(f"tracenas: {error.format_message()}", err=True)
        return 2
    except UserError as error:
        click.echo(f"tracenas: {error}", err=True)
        return 2
    except CheckFailed as error:
        click.echo(f"tracenas: {error}", err=True)
        return 1
    except (KeyboardInterrupt, click.Abort) as error:
        again = _going_on(argv, error)
        click.echo("\ntracenas: interrupted" + (f"; go on with: tracenas {again}" if again else ""), err=True)
        return 130
    except BrokenPipeError:
        discard_output()
        return 1
    except Exception as error:
        if os.environ.get("TRACENAS_TRACEBACK"):
            raise
        place = traceback_place(error)
        if place is None:
            click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
        where = "" if place is None else f"; the traceback is in {place}"
        click.echo(f"tracenas: unexpected {type(error).__name__}: {first_line(error)}{where}", err=True)
        return 1


def _going_on(argv: list[str], error: BaseException) -> str:
    """The arguments that go on with what was interrupted: a run that has begun knows its settings."""
    from tracenas.pipeline.run_directory import interrupted_run

    if (run := interrupted_run(error)) is not None:
        near = run.relative_to(Path.cwd()) if run.is_relative_to(Path.cwd()) else run
        return shlex.join(["resume", str(near)])
    command = next((word for word in argv if not word.startswith("-")), "")
    if command in ("search", "run", "demo", "metric", "recover", "study"):
        return shlex.join([*argv, *(() if "--resume" in argv else ("--resume",))])
    return ""


def _check_unicode(argv: Sequence[str]) -> None:
    """Refuse names that are not UTF-8: no JSON or YAML file could say them.

    Raises:
        UserError: naming the argument.
    """
    for argument in argv:
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UserError(f"argument '{shown}': not UTF-8; rename the file") from error


if __name__ == "__main__":
    main()
