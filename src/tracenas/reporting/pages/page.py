"""What every page of a report has: the document around it, its header with the links, headings, tiles, figures."""

from collections.abc import Sequence
from importlib.resources import files

from tracenas.reporting.pages.markup import Markup, el, join

__all__ = ["Section", "asset", "document", "figure", "header", "section_head", "stat_card", "unfinished"]

Section = tuple[str, str, Markup | None]
"""(anchor, name in the menu, content); without content it is left out of page and menu."""


def document(
    title: str,
    header: Markup,
    cards: Markup,
    sections: Sequence[Section],
    *,
    css: str = "",
    footer: Markup | None = None,
    script: str = "",
) -> str:
    """The page as text: one file, no library, no external resource; its policy allows scripts only if it has one.

    Args:
        css: further rules behind page.css.
        footer: element behind the sections.
        script: JavaScript that runs when the page is there.
    """
    scripts = " script-src 'unsafe-inline';" if script else ""
    policy = f"default-src 'none'; style-src 'unsafe-inline';{scripts} img-src data:"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("style", Markup(asset("page.css") + css)),
    )
    main = el("main", cards, *(el("section", body, id=key) for key, _, body in sections if body))
    body = el("body", header, main, footer, el("script", Markup(script)) if script else None)
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def asset(name: str) -> str:
    """A text file of this package."""
    return files("tracenas.reporting.pages").joinpath(name).read_text(encoding="utf-8")


def header(kind: str, model: str, chips: Sequence[str | Markup], sections: Sequence[Section]) -> Markup:
    """Brand and links to the sections, the model's name with its folder in grey, facts as chips.

    Args:
        kind: of report, behind the brand.
        chips: texts, or list items.
    """
    links = el("nav", *(el("a", name, href=f"#{key}") for key, name, body in sections if body), aria_label="Sections")
    brand = el("p", el("b", "tracenas"), f" {kind}", class_="brand")
    name = model.rstrip("/")
    folder, _, last = name.rpartition("/")
    heading = el("h1", el("span", f"{folder}/", class_="folder") if folder else None, last or name)
    items = (chip if isinstance(chip, Markup) else el("li", chip) for chip in chips)
    return el("header", el("div", brand, links, class_="bar-top"), heading, el("ul", *items, class_="chips"))


def section_head(name: str, lead: str | Markup | None = None) -> Markup:
    """A section's heading, and what stands in it in a sentence."""
    return join(el("h2", name), el("p", lead, class_="lead") if lead else None)


def unfinished(what: str) -> Markup:
    """A chip of the page of something that is still running, or was interrupted."""
    return el("li", f"{what} not finished: what the journal holds so far", class_="warn")


def stat_card(label: str, value: str | Markup, note: str | Markup | None = None, class_: str = "") -> Markup:
    """A tile with one figure."""
    return el(
        "div",
        el("p", label, class_="label"),
        el("p", value, class_="value"),
        el("p", note, class_="note") if note else None,
        class_=f"card stat {class_}".strip(),
    )


def figure(name: str, note: str, *content: Markup | None) -> Markup:
    """A card with a picture under its name and a note."""
    return el("figure", el("figcaption", el("b", name), el("span", note)), *content, class_="card")
