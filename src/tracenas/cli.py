"""The command line: a command reads its settings, calls its stage and prints what comes back; nothing else."""

import io
import json
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from tracenas.error_log import ERROR_LOG, error_log, log_beside, traceback_place
from tracenas.errors import CheckFailed, UserError, first_line
from tracenas.process import discard_output, disk_failures, is_first, terminable
from tracenas.registry import did_you_mean

__all__ = ["COMMANDS", "main"]


@dataclass(frozen=True)
class Command:
    """Where a command's stage and settings are, and which settings stand without an option name."""

    stage: str
    config: str
    help: str
    positional: tuple[str, ...] = ()
    variadic: bool = False
    parallel: bool = False
    """Whether torchrun may start it in several processes."""
    file: bool = False
    """Whether `out` is a file."""


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "demo.command:demo", "DemoConfig", "The main job on the model that ships with the package, or on SmolLM2."
    ),
    "run": Command(
        "run.command:run", "RunConfig", "Search, prune, compare, recover, bench and report, resumable.", ("model",)
    ),
    "plan": Command(
        "plan.command:plan",
        "PlanConfig",
        "Feasible budgets, evaluations, memory and time, before any work.",
        ("model",),
    ),
    "search": Command("search.command:search", "SearchConfig", "Find a sub-network under a budget.", ("model",)),
    "score": Command("score:score", "ScoreConfig", "Score one architecture.", ("model",)),
    "select-calibration": Command(
        "select_calibration:select_calibration",
        "SelectCalibrationConfig",
        "Choose the calibration set that prunes best.",
        ("model",),
        file=True,
    ),
    "prune": Command("prune.command:prune", "PruneConfig", "Write the smaller checkpoint.", ("model",)),
    "recover": Command(
        "recover.command:recover", "RecoverConfig", "Train a pruned checkpoint to recover.", ("model",), parallel=True
    ),
    "eval": Command(
        "evaluate:evaluate",
        "EvalConfig",
        "Perplexity and task accuracy of models.",
        ("models",),
        variadic=True,
        parallel=True,
        file=True,
    ),
    "sparsify": Command(
        "sparsify.command:sparsify", "SparsifyConfig", "Set weights to zero: unstructured or N:M.", ("model",)
    ),
    "metric search": Command(
        "metric.command:search", "MetricSearchConfig", "Discover pruning metrics by genetic programming.", ("model",)
    ),
    "metric show": Command(
        "metric.show:show", "MetricShowConfig", "Parse and simplify a metric's expression.", ("metric",)
    ),
    "bench": Command(
        "bench:bench",
        "BenchConfig",
        "Latency, throughput and memory of models.",
        ("models",),
        variadic=True,
        file=True,
    ),
    "export": Command(
        "export:export", "ExportConfig", "Write a checkpoint for llama.cpp (GGUF).", ("model",), file=True
    ),
    "report": Command("report:report", "ReportConfig", "Draw a run's report.html again.", ("run",), file=True),
    "study": Command(
        "study.command:study", "StudyConfig", "Which proxies order architectures as recovery does.", ("model",)
    ),
    "study ablation": Command(
        "study.ablation:ablation", "AblationConfig", "A proxy's ranking from less text or rank.", ("model",)
    ),
}

_SHARED = ("config", "json_output")


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
        known = self.list_commands(ctx)
        if cmd_name not in known:
            raise click.UsageError(f"no command '{name}': {did_you_mean(cmd_name, known)}")
        group = _Commands(cmd_name, help=f"Accepted: {name} {{{','.join(_words(name))}}}.")
        group.prefix = f"{name} "
        return group

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(n, command.help) for n, command in COMMANDS.items() if n.startswith(self.prefix)])


class _Leaf(click.Command):
    """A command; one that is also the first word of others (`study`, `study ablation`) hands over to them."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        further = f"{self.name} {args[0]}" if args else ""
        if further in COMMANDS:
            leaf = _command(further, COMMANDS[further])
            return leaf.make_context(further, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _words(group: str) -> list[str]:
    return [name.split()[-1] for name in COMMANDS if name.startswith(f"{group} ")]


def _command(name: str, command: Command) -> click.Command:
    from tracenas import config as configs

    kind = getattr(configs, command.config)
    params: list[click.Parameter] = [
        click.Argument(["arguments"], nargs=-1, metavar=_metavar(command)),
        click.Option(
            ["--config"],
            type=click.Path(path_type=Path),
            help="YAML file with settings; options override it.",
        ),
        click.Option(["--json", "json_output"], is_flag=True, help="One JSON object on stdout."),
    ]
    for field in configs.settings_of(kind):
        if field in command.positional or field in kind.sections:
            continue
        info = kind.model_fields[field]
        flag = "--" + field.replace("_", "-")
        default = "" if info.is_required() or info.default in (None, "", False) else f" [{info.default}]"
        text = (info.description or "") + default + (" [required]" if info.is_required() else "")
        if info.annotation is bool:
            off = "--" + field[3:].replace("_", "-") if field.startswith("no_") else f"--no-{flag[2:]}"
            params.append(click.Option([f"{flag}/{off}", field], is_flag=True, default=None, help=text))
        else:
            params.append(click.Option([flag, field], default=None, metavar="VALUE", help=text))

    def call(arguments: tuple[str, ...], config: Path | None, json_output: bool, **options: Any) -> None:
        stored: dict[str, Any] = _yaml(config, name) if config is not None else {}
        here = _values(kind, command, arguments, stored, options)
        settings = configs.build(kind, {**stored, **here}, inherited=stored.keys() - here.keys())
        first = is_first(name, tuple(n for n, c in COMMANDS.items() if c.parallel))
        module, _, function = command.stage.partition(":")
        with error_log(_log_of(command, settings)), disk_failures():
            result = getattr(import_module(f"tracenas.commands.{module}"), function)(settings)
            if first and json_output:
                click.echo(json.dumps(result.to_json(), allow_nan=False))
            elif first:
                result.show()
            sys.stdout.flush()

    further = [f"{name}.KEY=VALUE: {kind.model_fields[name].description}" for name in kind.sections]
    epilog = "\b\n" + "\n".join(further) if further else None
    return _Leaf(name, callback=call, params=params, help=command.help, epilog=epilog)


def _log_of(command: Command, settings: Any) -> Path | None:
    """Where unexpected errors are kept: OUT/error.log, beside an OUT that is a file, else nowhere."""
    out: Path | None = getattr(settings, "out", None)
    if out is None:
        return None
    return log_beside(out) if command.file else out / ERROR_LOG


def _metavar(command: Command) -> str:
    names = [p.upper().removesuffix("S") if command.variadic else p.upper() for p in command.positional]
    return " ".join([n + "..." if command.variadic else n for n in names] + ["[KEY=VALUE]..."])


def _values(
    kind: Any, command: Command, arguments: Sequence[str], stored: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Settings from `key=value`, then options; later ones win. A section's join those that the YAML file has."""
    for name in kind.sections:
        if name in stored and stored[name] is None:  # `bench:` with nothing below it: the stage, with its defaults
            stored[name] = {}
    values: dict[str, Any] = {}
    plain: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        section, dot, setting = key.replace("-", "_").partition(".")
        if equals and dot and section in kind.sections and not Path(argument).exists():
            values[section] = {**(values.get(section) or stored.get(section) or {}), setting: _scalar(value)}
        elif equals and key.replace("-", "_").isidentifier() and not Path(argument).exists():
            values[key.replace("-", "_")] = _scalar(value)
        else:
            plain.append(argument)
    if command.variadic and plain:
        values[command.positional[0]] = tuple(plain)
    elif not command.variadic:
        for name, argument in zip(command.positional, plain, strict=False):
            values[name] = argument
        if len(plain) > len(command.positional):
            raise UserError(f"unexpected argument '{plain[len(command.positional)]}'; settings have the form key=value")
    values.update({k: v for k, v in options.items() if v is not None})
    return values


def _scalar(text: str) -> Any:
    """`true`, `null` and lists as YAML reads them; everything else as it stands, for the settings to check."""
    return {"true": True, "false": False, "null": None}.get(text.lower(), text)


def _yaml(path: Path, command: str) -> dict[str, Any]:
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"config {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {path}: not UTF-8 (byte {error.start})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark is not None else ""
        raise UserError(f"config {path}: not YAML{where}") from error
    if not isinstance(data, dict):
        raise UserError(f"config {path}: expected settings of the form key: value")
    kind = data.pop("kind", command)  # of a run directory's config.yaml
    if kind != command and not {kind, command} <= {"run", "search"}:
        raise UserError(f"config {path}: settings of `tracenas {kind}`, not of `tracenas {command}`")
    return {str(k).replace("-", "_"): v for k, v in data.items()}


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tracenas")
def app() -> None:
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
    except (KeyboardInterrupt, click.Abort):
        resumable = argv and argv[0] in ("search", "run", "demo", "metric", "recover", "study")
        again = shlex.join([*argv, *(() if "--resume" in argv else ("--resume",))])
        click.echo("\ntracenas: interrupted" + (f"; go on with: tracenas {again}" if resumable else ""), err=True)
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
