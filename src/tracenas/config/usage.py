"""When a setting is read: tables beside the settings, so that one that was given and would be ignored is refused."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROWS", "TRACED", "Use", "additive", "applies", "needs", "reads_widths", "refits"]


@dataclass(frozen=True)
class Use:
    """Settings that are read under a condition only.

    Args:
        settings: names of fields.
        where: the condition in words, behind "need".
        read: the condition; of settings whose `auto` is not resolved yet, true where it may hold.
    """

    settings: tuple[str, ...]
    where: str
    read: Callable[[Any], bool]

    def describe(self) -> str:
        """The condition in a sentence: `a, b and c need …`."""
        *most, last = (name.replace("_", "-") for name in self.settings)
        return f"{', '.join(most)} and {last} need {self.where}" if most else f"{last} needs {self.where}"


def applies(kind: type) -> Iterator[Use]:
    """The table of a command's settings, with those of the settings that it is built on."""
    for base in kind.__mro__:
        yield from base.__dict__.get("uses", ())


def needs(proxy: str, need: str) -> bool:
    """Whether a proxy, or one of a combination's, needs `need`; so may `auto`.

    Raises:
        UserError: for an unknown proxy.
    """
    from tracenas.proxies.combination import choose

    return proxy == "auto" or need in choose(proxy).needs


def additive(proxy: str) -> bool:
    """Whether a proxy is a single mean over sequences; so may `auto` be.

    Raises:
        UserError: for an unknown proxy.
    """
    from tracenas.proxies.combination import choose

    return proxy == "auto" or choose(proxy).additive


def refits(config: Any) -> bool:
    """Whether output projections are refitted: to score candidates, to rank units or to prune."""
    from tracenas.saliency import FOR_REFITS

    return (
        needs(getattr(config, "proxy", "phi"), "compensated")
        or config.saliency in FOR_REFITS
        or getattr(config, "compensate", "none") not in ("auto", "none")
    )


def reads_widths(config: Any) -> bool:
    """Whether a proxy reads the costs of all widths, which are measured on the text of refits."""
    listed: str = getattr(config, "proxies", getattr(config, "proxy", "phi"))
    return listed == "all" or any(needs(name.strip(), "sensitivity") for name in listed.split(",") if name.strip())


def _reads_rows(config: Any) -> bool:
    """Whether some of the text may come in rows with fields; so may what is no local file."""
    from tracenas.data.decoding import format_name
    from tracenas.data.rows import ROW_FORMATS

    named = (getattr(config, name, None) for name in ("data", "text", "held_out", "second"))
    files = [Path(source) for source in named if source is not None]
    return not files or any(not file.exists() or format_name(file) in ROW_FORMATS for file in files)


TRACED = Use(("rank",), "a proxy of gradient traces, such as phi", lambda c: needs(c.proxy, "trace"))
ROWS = Use(("text_field",), "text in rows: JSONL, CSV, Parquet or hub data", _reads_rows)
