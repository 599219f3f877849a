"""The README's table of families is the one that the registry and the recorded results make."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripts_as_modules import load_script

from tracenas.families import FAMILIES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("family_table")


def test_the_document_has_the_table(script: Any) -> None:
    document = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    expected = script.table(script.read_records()["tests"], FAMILIES.names())
    assert script.with_table(document, expected) == document, "run: python scripts/family_table.py"


def test_what_is_recorded_is_a_test_of_today(script: Any) -> None:
    for column in script.COLUMNS.values():
        for tests in column:
            if tests.key in script.read_records()["tests"]:
                text = (ROOT / tests.file).read_text(encoding="utf-8")
                assert tests.file.startswith("scripts/") or f"def {tests.name}(" in text, tests.key
    known = {tests.key for column in script.COLUMNS.values() for tests in column}
    assert set(script.read_records()["tests"]) <= known
    for families in script.read_records()["tests"].values():
        assert set(families) <= set(FAMILIES.names())


def test_every_family_is_a_row_and_nothing_untested_is_ticked(script: Any) -> None:
    rows = script.table({}, FAMILIES.names()).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == FAMILIES.names()
    assert all(row.split(" | ")[2:-1] == ["–"] * (len(script.COLUMNS) - 1) for row in rows)
    assert "Llama 1 to 3" in rows[FAMILIES.names().index("llama")]


@pytest.mark.parametrize(
    ("parameters", "family"),
    [
        ("gemma3_text_uniform", "gemma3_text"),
        ("gemma_uniform", "gemma"),
        ("qwen3_moe", "qwen3_moe"),
        ("llama-mha", "llama"),
        ("stream-phi3", "phi3"),
        ("gqa_kv_groups", "llama"),
        ("nothing", None),
    ],
)
def test_the_family_in_an_id(script: Any, parameters: str, family: str | None) -> None:
    assert script.config_family(parameters, FAMILIES.names(), {"gqa": "llama"}) == family


def test_reports_are_read_and_failures_seen(script: Any, tmp_path: Path) -> None:
    suite = "tests.parity.test_families", "test_scores_equal_masked_dense_autograd"
    cases = {"llama": "", "llama-mha": "<failure/>", "gemma": "", "qwen2": "<skipped/>", "other": ""}
    lines = [f'<testcase classname="{suite[0]}" name="{suite[1]}[{k}]">{v}</testcase>' for k, v in cases.items()]
    (tmp_path / "report.xml").write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    found = script.recorded(tmp_path / "report.xml", FAMILIES.names())
    assert json.loads(json.dumps(found)) == {
        f"{suite[0].replace('.', '/')}.py::{suite[1]}": {
            "llama": {"passed": 1, "failed": 1},
            "gemma": {"passed": 1, "failed": 0},
        }
    }
    column = script.COLUMNS["score parity"]
    assert [script.cell(column, name, found) for name in ("llama", "gemma", "qwen2")] == ["✗", "✓", "–"]


def test_results_of_vllm_are_read(script: Any, tmp_path: Path) -> None:
    results = [
        {"family": "llama", "mode": "stock", "passed": True},
        {"family": "phi3", "mode": "stock", "passed": False},
    ]
    (tmp_path / "vllm.json").write_text(json.dumps(results))
    found = script.recorded(tmp_path / "vllm.json", FAMILIES.names())
    column = script.COLUMNS["vLLM"]
    assert [script.cell(column, name, found) for name in ("llama", "phi3", "qwen2")] == ["✓", "✗", "–"]


def test_a_readme_without_markers_is_refused(script: Any) -> None:
    with pytest.raises(ValueError, match="needs the lines"):
        script.with_table("# tracenas\n", "| |")
