"""What the pages of all reports share, and files of a metric search or a study that are not as they should be."""

import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup
from test_report import Page

from tracenas.errors import UserError
from tracenas.reporting.charts.svg import el, ticks
from tracenas.reporting.pages.metric import write_metric_report
from tracenas.reporting.pages.page import render
from tracenas.reporting.pages.study import write_study_report

VALUES: dict[str, Any] = {
    "title": "a < b",
    "kind": "search report",
    "model": "org/<i>model/",
    "sections": [("first", "First", Markup("<h2>One</h2>")), ("second", "Second", ""), ("third", "3 & 4", "<b>")],
}


def policy(page: str) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found is not None
    return found[1]


def test_the_menu_names_the_sections_that_there_are() -> None:
    shown = Page(render("page.html", **VALUES))
    assert shown.references == ["#first", "#third"] and shown.tags.count("section") == 2
    texts = [text.strip() for text in shown.texts]
    for text in ("a < b", "tracenas", "search report", "org/", "<i>model", "First", "One", "3 & 4", "<b>"):
        assert text in texts, text
    assert "i" not in shown.tags and shown.tags.count("b") == shown.tags.count("script") == 1


def test_a_value_that_is_not_given_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'kind' is undefined"):
        render("page.html", **{name: value for name, value in VALUES.items() if name != "kind"})


def test_a_page_fetches_nothing_and_has_one_script() -> None:
    page = render("page.html", **VALUES)
    assert re.search(r"<script>\(\(\) => \{.*\}\)\(\);\s*</script>", page, re.S) and page.count("<script") == 1
    assert policy(page) == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def test_elements_escape_their_texts_and_attributes() -> None:
    inner = el("title", "a < b & c")
    assert inner == "<title>a &lt; b &amp; c</title>"
    assert el("rect", inner, None, class_='"x"', rx=0.125, stroke_width=-0.001, fill=None) == (
        f'<rect class="&#34;x&#34;" rx="0.12" stroke-width="0">{inner}</rect>'
    )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("summary.json", None, "no such file"),
        ("summary.json", "[]", "expected an object"),
        ("journal.jsonl", None, "no metric with a score"),
        ("config.yaml", "a: [", "not YAML"),
        ("config.yaml", "- a", "expected an object"),
    ],
)
def test_a_metric_searchs_files_are_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    files = {"summary.json": "{}", "journal.jsonl": '{"score": -1.0}\n', "config.yaml": "seed: 0", name: content}
    for file, text in files.items():
        if text is not None:
            (tmp_path / file).write_text(text)
    with pytest.raises(UserError, match=words) as told:
        write_metric_report(tmp_path)
    assert name in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(("content", "words"), [(None, "no such file"), ("3", "expected an object")])
def test_a_studys_files_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=words) as told:
        write_study_report(tmp_path)
    assert "study.json" in str(told.value)


def test_a_local_models_heading_is_its_name() -> None:
    """Its path is in the tooltip, also without the script; a name on the hub stands as it is."""
    path = "/home/me/models/llama"
    shown = render("page.html", **{**VALUES, "model": path})
    assert f'<h1><span data-tip="{path}" title="{path}" tabindex="0">llama</span></h1>' in shown
    shown = render("page.html", **{**VALUES, "model": "org/llama"})
    assert '<h1><span class="folder">org/</span><span>llama</span></h1>' in shown


@pytest.mark.parametrize(("low", "high"), [(3.1, 3.9), (-4.9, -3.1), (-0.1, 1.4), (0.4, 0.49)])
def test_an_axis_has_two_ticks_at_least(low: float, high: float) -> None:
    for about in (1, 2, 3):
        found = ticks(low, high, about)
        assert len(found) >= 2 and low <= found[0] and found[-1] <= high + 1e-9
