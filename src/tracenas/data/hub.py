"""Documents from data sets on the Hugging Face hub, streamed; nothing is fetched that was not named."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from tracenas.data.files import document
from tracenas.errors import UserError
from tracenas.hub.commits import commits, is_pinning, remember
from tracenas.hub.failures import refusal
from tracenas.registry import did_you_mean

__all__ = ["KNOWN", "HubData", "articles", "parse", "rows", "streamed"]


@dataclass(frozen=True)
class HubData:
    """One split of one data set.

    Attributes:
        path: the hub id.
        config: its configuration (subset), None for the default one.
        split: its split.
        held_out: the split meant for evaluation, if it is known.
        validation: the split meant for choosing between models, likewise.
        articles: its rows are lines of articles that begin with ` = Title = `.
    """

    path: str
    config: str | None = None
    split: str = "train"
    held_out: str | None = None
    validation: str | None = None
    articles: bool = False

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"{self.path}{config}@{self.split}"


KNOWN = {
    "fineweb-edu": HubData("HuggingFaceFW/fineweb-edu", "sample-100BT"),
    "wikitext2": HubData(
        "Salesforce/wikitext", "wikitext-2-raw-v1", held_out="test", validation="validation", articles=True
    ),
    "c4": HubData("allenai/c4", "en", held_out="validation", validation="validation"),
}
"""Data sets that have a short name; `:config` and `@split` may follow it as they may follow a hub id."""

_NAME = re.compile(r"(?P<path>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.\[\]:%-]+))?")
_TITLE = re.compile(r" = [^=\s](.*[^=\s])? = \n?")


def parse(name: str, *, use: Literal["training", "validation", "held_out"] = "training") -> HubData:
    """`fineweb-edu`, `org/name`, `org/name:config`, `org/name@split` … → what to load.

    Args:
        name: as above.
        use: whose split of a known data set is taken where none is named.

    Raises:
        UserError: it is neither a known name nor a hub id.
    """
    match = _NAME.fullmatch(name)
    entry = KNOWN.get(match["path"]) if match else None
    if match is None or (entry is None and "/" not in match["path"]):
        raise UserError(
            f"data '{name}' is neither an existing file nor a known data set: "
            f"{did_you_mean(name, list(KNOWN))}, or a hub data set 'org/name[:config][@split]'"
        )
    data = entry or HubData(match["path"])
    if use != "training" and (split := getattr(data, use)):
        data = replace(data, split=split)
    if match["config"]:
        data = replace(data, config=match["config"])
    if match["split"]:
        data = replace(data, split=match["split"])
    return data


def rows(
    data: HubData, *, text_field: str | None = None, seed: int | None = None, buffer: int = 10_000
) -> Iterator[str]:
    """The text of every row, in order or, with a seed, shuffled through a buffer (shards shuffled, too).

    Raises:
        UserError: the data set cannot be had, or its rows lack the field; with the data set's name.
    """
    field = text_field or "text"
    for number, row in enumerate(streamed(data, seed=seed, buffer=buffer)):
        place = f", row {number}" if seed is None else ""  # a shuffled row's number says nothing
        text = document(row, field, f"data set '{data}'{place}")
        if text.strip() or data.articles:
            yield text


def articles(data: HubData, *, text_field: str | None = None) -> Iterator[str]:
    """WikiText's rows are lines: joined here into articles, which begin with a line ` = Title = `."""
    lines: list[str] = []
    for line in rows(data, text_field=text_field):
        if _TITLE.fullmatch(line) and lines:
            article, lines = "".join(lines), []
            if article.strip():
                yield article
        lines.append(line)
    if (article := "".join(lines)).strip():
        yield article


def streamed(data: HubData, *, seed: int | None, buffer: int = 10_000) -> Iterator[dict[str, Any]]:
    """The rows of a data set, in order or, with a seed, shuffled through a buffer (shards shuffled, too).

    While a command runs they are of one commit, the one that a run began with where it goes on.

    Raises:
        UserError: the data set cannot be had. What goes wrong here (no network, no such data set, configuration or
            split, a broken shard) has dozens of exception types, across three libraries, and one meaning.
    """
    import datasets

    commit = _commit(data.path)
    at = {} if commit is None else {"revision": commit}
    try:
        stream = datasets.load_dataset(data.path, name=data.config, split=data.split, streaming=True, **at)
        if seed is not None:
            stream = stream.shuffle(seed=seed, buffer_size=buffer)
        yield from stream
    except Exception as error:
        what = f"data set '{data}' cannot be read from the hub, and is no file here"
        raise refusal(what, data.path, error, kind="dataset") from error


def _commit(repo: str) -> str | None:
    """The commit that a data set stands for while a command runs, found out once.

    None outside of a command, and where the hub does not tell: without a network `datasets` may have a copy, and if it
    has none, it says why.
    """
    name = f"datasets/{repo}"
    if (known := commits().get(name)) is not None or not is_pinning():
        return known
    from huggingface_hub import HfApi

    with suppress(Exception):  # the hub's client raises many unrelated types
        commit = HfApi().dataset_info(repo).sha
        if commit:
            remember(name, commit)
    return commits().get(name)
