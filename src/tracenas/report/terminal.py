"""A finished run as rich tables on a terminal, and as plain aligned text elsewhere."""

import io
import math

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracenas.report.charts import NAMES
from tracenas.report.drawing import UNIT_NAMES
from tracenas.report.dynamics import retention
from tracenas.report.formats import MISSING, count, data_size, decimal, duration, percent, plural, proxy_label
from tracenas.report.run_data import RunData
from tracenas.report.verdict import judge, random_label, random_rows, spread
from tracenas.space.architecture import Architecture

__all__ = ["architecture_table", "comparison_table", "print_run", "sparkline", "summary_table"]

BARS = "▁▂▃▄▅▆▇█"
STYLES = {"heads": "blue", "kv_heads": "cyan", "cross_heads": "magenta", "channels": "yellow"}


def sparkline(architecture: Architecture, key: str, units: tuple[int, ...], *, ascii_only: bool = False) -> str:
    """One character per layer: an eighth-block for the share of units kept, `·` where it is skipped.

    With `ascii_only` a digit stands for the tenths kept (9 from 90 % on) and `-` for skipped. Layers of the
    base without such a unit are blank.
    """
    marks = []
    for ratio in retention(architecture, key, units):
        if math.isnan(ratio):
            marks.append(" ")
        elif ratio == 0:
            marks.append("-" if ascii_only else "·")
        elif ascii_only:
            marks.append(str(min(9, int(ratio * 10))))
        else:
            marks.append(BARS[min(7, max(0, math.ceil(ratio * 8) - 1))])
    return "".join(marks)


def summary_table(run: RunData) -> Table:
    """What was searched, what was found, what it took."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(run):
        table.add_row(name, Text(value))
    return table


def _facts(run: RunData) -> list[tuple[str, str]]:
    label = proxy_label(run.proxy)
    facts = [("model", run.model)]
    _, limit = run.budget
    if limit is not None:
        share = f" ({percent(limit / run.base_params)} of base)" if run.base_params else ""
        facts.append(("budget", f"{limit:,} parameters{share}"))
    found = run.compared("found")
    best = run.best
    params = found.params if found and found.params else (best.params if best else None)
    if params is not None:
        base = f"{run.base_params:,} to {params:,}" if run.base_params else f"{params:,}"
        facts.append(("parameters", base + (f" ({percent(params / run.base_params)})" if run.base_params else "")))
    facts.append((f"best {label}", decimal(best.score) if best else "none: no candidate got a score"))
    if best is not None:
        active = sum(not layer.skip for layer in best.architecture.layers)
        facts.append(("blocks", f"{active} of {len(best.architecture.layers)} kept"))
    evaluations = run.number("evaluations")
    number = len(run.candidates) if evaluations is None else round(evaluations)
    failed = sum(n for _, n in run.failures)
    duplicates = run.number("duplicates")
    also = [f"{failed:,} failed"] if failed else []
    also += [f"{plural(round(duplicates), 'duplicate')} redrawn"] if duplicates else []
    facts.append(("evaluated", ", ".join([plural(number, "candidate"), *also])))
    facts += [("failure", f"{reason} ({n:,} times)") for reason, n in run.failures[:3]]
    if run.seconds is not None:
        per = f" ({duration(run.seconds / number)} per candidate)" if number else ""
        facts.append(("time", duration(run.seconds) + per))
    if memory := run.number("peak_memory_bytes"):
        facts.append(("peak memory", data_size(memory)))
    return facts


def architecture_table(run: RunData, *, ascii_only: bool = False) -> Table | None:
    """The found architecture: a sparkline over the layers per sub-block, and how much of it is kept."""
    if run.best is None:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("found", no_wrap=True)
    table.add_column("layer 0 to last", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    for key in NAMES:
        units = run.base_units.get(key)
        if units is None:
            continue
        kept = sum(dict(layer.kept).get(key, 0) for layer in run.best.architecture.layers)
        bars = sparkline(run.best.architecture, key, units, ascii_only=ascii_only)
        share = f"{kept:,} of {sum(units):,} ({percent(kept / max(sum(units), 1), 0)})"
        table.add_row(UNIT_NAMES[key], Text(bars, style=STYLES[key]), share)
    return table


def comparison_table(run: RunData, *, plain: bool = False) -> Table | None:
    """Parameters and perplexity of base, uniform, random (each, mean ± sd) and found; the best in green."""
    if not run.comparison:
        return None
    winner = judge(run).winner
    table = Table(box=None if plain else box.SIMPLE_HEAD, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("parameters", "of base", "perplexity", proxy_label(run.proxy)):
        table.add_column(name, justify="right", no_wrap=True)
    base = run.compared("base")
    whole = base.params if base and base.params else run.base_params
    chance = random_rows(run.comparison)
    for row in run.comparison:
        share = percent(row.params / whole) if row.params and whole else MISSING
        params = f"{row.params:,}" if row.params is not None else MISSING
        best = row is winner
        label = Text(row.name + (" (best)" if best else ""))
        table.add_row(
            label,
            params,
            share,
            decimal(row.perplexity),
            decimal(row.score),
            style="bold green" if best else None,
        )
        if len(chance) > 1 and row is chance[-1]:
            perplexity = str(spread(chance, lambda r: r.perplexity) or MISSING)
            score = str(spread(chance, lambda r: r.score) or MISSING)
            mean = spread(chance, lambda r: r.params)
            params = count(mean.mean) if mean else MISSING
            table.add_row(random_label(chance), params, "", perplexity, score, style="dim")
    return table


def print_run(run: RunData, console: Console | None = None) -> None:
    """Print summary, architecture and comparison; without colour and boxes where it is not a terminal.

    Lines are never cut to the width of a console that is not a terminal.
    """
    console = console or Console()
    plain = not console.is_terminal or console.is_dumb_terminal
    ascii_only = not (console.encoding or "").lower().startswith("utf")
    parts: list[RenderableType] = [summary_table(run)]
    if (architecture := architecture_table(run, ascii_only=ascii_only)) is not None:
        parts += ["", architecture]
    if (comparison := comparison_table(run, plain=plain)) is not None:
        parts += ["", comparison, "", *_verdict(run)]
    group = Group(*parts)
    if plain:
        buffer = io.StringIO()
        Console(file=buffer, width=max(console.width, 400), force_terminal=False).print(group, highlight=False)
        text = "\n".join(row.rstrip() for row in buffer.getvalue().rstrip().splitlines())
        console.file.write(_encodable(text, ascii_only) + "\n")
        return
    console.print(group, highlight=False)


def _verdict(run: RunData) -> list[Text]:
    verdict = judge(run)
    style = {"won": "green", "tied": "green", "lost": "yellow"}.get(verdict.outcome, "")
    return [Text(verdict.sentence, style=style), *(Text(remark, style="dim") for remark in verdict.remarks)]


def _encodable(text: str, ascii_only: bool) -> str:
    """Text that a console without Unicode can show."""
    if not ascii_only:
        return text
    plain = {
        "Φ": "phi",
        "±": "+-",
        "−": "-",
        "–": "-",
        "×": "x",
        "“": '"',
        "”": '"',
        "\N{NARROW NO-BREAK SPACE}": " ",
    }
    for letter, substitute in plain.items():
        text = text.replace(letter, substitute)
    return text.encode("ascii", "replace").decode()
