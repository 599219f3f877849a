"""What the pages of all reports share, and files of a metric search or a study that are not as they should be."""

import re
from pathlib import Path

import pytest
from test_report import Page

from tracenas.errors import UserError
from tracenas.reporting.pages.markup import Markup, el
from tracenas.reporting.pages.metric import write_metric_report
from tracenas.reporting.pages.page import Section, document, header, section_head, stat_card
from tracenas.reporting.pages.study import write_study_report

SECTIONS: list[Section] = [("first", "First", section_head("One", "& two")), ("second", "Second", None)]


def policy(page: str) -> str:
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert found is not None
    return found[1].replace("&#x27;", "'")


def test_the_menu_names_the_sections_that_there_are() -> None:
    chips = ["Seed <0>", el("li", "unfinished", class_="warn")]
    top = header("search report", "org/model/", chips, SECTIONS)
    page = document("a < b", top, stat_card("Time", "3 s", class_="won"), SECTIONS, footer=el("footer", "end"))
    shown = Page(page)
    assert shown.references == ["#first"] and shown.tags.count("section") == 1
    assert shown.tags.count("li") == 2
    for text in ("a < b", "tracenas", " search report", "org/", "model", "Seed <0>", "One", "& two", "3 s", "end"):
        assert text in shown.texts, text
    assert '<div class="card stat won">' in page and page.index("</main>") < page.index("<footer>")


def test_only_a_page_with_a_script_may_run_one() -> None:
    plain = document("t", header("report", "m", [], []), Markup(""), [], css=".own{}")
    assert "script" not in plain and ".own{}" in plain
    assert policy(plain) == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    scripted = document("t", header("report", "m", [], []), Markup(""), [], script="a < b && c")
    assert "<script>a < b && c</script></body>" in scripted
    assert (
        policy(scripted) == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
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
