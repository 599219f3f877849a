"""The table of docs/families.md, "family × what was tested", from the registry and the recorded results of tests.

    pytest -m "" tests/parity/test_families.py … --junitxml report.xml
    python scripts/check_vllm.py DIR… --vllm-python PATH --json vllm.json
    python scripts/family_table.py --record report.xml vllm.json    # into tests/results.json, and the table
    python scripts/family_table.py                        # table into docs/families.md

A cell says ✓ where every recorded run of its tests for the family passed, ✗ where one failed, – where none is recorded.
A report replaces the records of the test functions that it holds, and leaves the others. Another column is a line in
`COLUMNS`; another family appears by itself, since tests are parametrised over the registry.
"""

import argparse
import ast
import datetime
import importlib.util
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "results.json"
BEGIN, END = "<!-- families: made by scripts/family_table.py -->", "<!-- end of families -->"
Records = Mapping[str, Mapping[str, Mapping[str, int]]]


@dataclass(frozen=True)
class Tests:
    """A test function, and which of its parameters count.

    Args:
        file: from the repository's root.
        ids: a regular expression that the id of the parameters must contain.
        aliases: what stands in ids for a family that they do not name.
        mark: the cell's text where they passed.
    """

    file: str
    name: str
    ids: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    mark: str = "✓"

    @property
    def key(self) -> str:
        """As in the records."""
        return f"{self.file}::{self.name}[{self.ids}]" if self.ids else f"{self.file}::{self.name}"


_PARITY = "tests/parity/"
_GGUF = {"Llama, MHA": "llama", "Llama, GQA": "llama", "Qwen 2": "qwen2", "Qwen 3, tied": "qwen3"}
COLUMNS: dict[str, tuple[Tests, ...]] = {
    "score parity": (Tests(_PARITY + "test_families.py", "test_scores_equal_masked_dense_autograd"),),
    "exact counts": (Tests(_PARITY + "test_families.py", "test_counts_equal_the_materialised_models"),),
    "round trip": (
        Tests(_PARITY + "test_round_trip.py", "test_logits_are_those_of_the_masked_model"),
        Tests(_PARITY + "test_t5.py", "test_logits_are_those_of_the_masked_model", aliases={"flan": "t5"}),
    ),
    "compensation": (
        Tests(_PARITY + "test_compensation.py", "test_ridge_is_the_direct_least_squares_solution"),
        Tests(_PARITY + "test_compensation.py", "test_experts_stay_plain_and_attention_is_refitted", mark="attention"),
    ),
    "one-shot": (
        Tests(_PARITY + "test_saliency.py", "test_equals_autograd", aliases={"gqa": "llama", "mha": "llama"}),
        Tests(_PARITY + "test_t5_saliency.py", "test_saliency_equals_autograd", aliases={"flan": "t5"}),
    ),
    "attention stub": (Tests(_PARITY + "test_stub.py", "test_logits_are_exactly_those_without_it"),),
    "llama.cpp": (
        Tests(_PARITY + "test_gguf_llama_cpp.py", "test_twenty_random_architectures", aliases=_GGUF),
        Tests(_PARITY + "test_gguf_llama_cpp.py", "test_other_families_and_padding", "-deci-|-openelm-"),
        Tests(_PARITY + "test_gguf_llama_cpp.py", "test_other_families_and_padding", "-padded-", mark="padded"),
    ),
    "vLLM": (
        Tests("scripts/check_vllm.py", "stock"),
        Tests(_PARITY + "test_vllm.py", "test_vllm_answers_as_transformers", "-(stock|stub)$"),
    ),
    "vLLM, plugin": (
        Tests("scripts/check_vllm.py", "plugin"),
        Tests(_PARITY + "test_vllm.py", "test_vllm_answers_as_transformers", "-plugin$"),
    ),
}


def config_family(parameters: str, families: Iterable[str], aliases: Mapping[str, str]) -> str | None:
    """The family that an id of parameters names (`gemma3_text_uniform`, `llama-mha`), None if it names none."""
    known = sorted({**{name: name for name in families}, **aliases}.items(), key=lambda item: -len(item[0]))
    for part in parameters.split("-"):
        for word, name in known:
            if part == word or part.startswith(word + "_"):
                return name
    return None


Found = dict[str, dict[str, dict[str, int]]]


def recorded(report: Path, families: Iterable[str]) -> Found:
    """Per test function of `COLUMNS` that a report holds: family → how many passed and failed.

    Args:
        report: of pytest (junit), or what `scripts/check_vllm.py --json` wrote.
    """
    found: Found = {}
    if report.suffix == ".json":
        for result in json.loads(report.read_text(encoding="utf-8")):
            _count(found, f"scripts/check_vllm.py::{result['mode']}", result["family"], result["passed"])
        return found
    names = list(families)
    for case in ElementTree.parse(report).iter("testcase"):
        name, _, parameters = case.get("name", "").rstrip("]").partition("[")
        file = case.get("classname", "").replace(".", "/") + ".py"
        for tests in (t for column in COLUMNS.values() for t in column if (t.file, t.name) == (file, name)):
            family = config_family(parameters, names, tests.aliases)
            if case.find("skipped") is not None or family is None or not re.search(tests.ids, parameters):
                continue
            _count(found, tests.key, family, case.find("failure") is None and case.find("error") is None)
    return found


def _count(found: Found, key: str, family: str, passed: bool) -> None:
    counts = found.setdefault(key, {}).setdefault(family, {"passed": 0, "failed": 0})
    counts["passed" if passed else "failed"] += 1


def cell(column: Iterable[Tests], family: str, records: Records) -> str:
    """What the records say of a family."""
    found = [(t.mark, records[t.key][family]) for t in column if family in records.get(t.key, {})]
    if any(counts["failed"] for _, counts in found):
        return "✗"
    return found[0][0] if found else "–"


def models_of(family: str) -> str:
    """What a family is, by the first words of its file's docstring."""
    from tracenas.families import FAMILIES

    spec = importlib.util.find_spec(type(FAMILIES).__module__.replace("registry", f"families.{family}"))
    if spec is None or spec.origin is None:
        return "–"
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "–"
    return text.partition(" (`")[0]


def table(records: Records, families: Iterable[str]) -> str:
    """Markdown."""
    rows = [["`model_type`", "models", *COLUMNS], ["---"] * (len(COLUMNS) + 2)]
    for family in families:
        rows.append([f"`{family}`", models_of(family), *(cell(c, family, records) for c in COLUMNS.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def with_table(document: str, new: str, begin: str = BEGIN, end: str = END) -> str:
    """A document with the table between the markers.

    Raises:
        ValueError: if it has not both markers.
    """
    before, begins, rest = document.partition(begin)
    _, ends, after = rest.partition(end)
    if not begins or not ends:
        raise ValueError(f"the document needs the lines {begin} and {end}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def read_records() -> dict[str, Any]:
    """`tests/results.json`."""
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {"tests": {}}
    return found


def main(argv: list[str]) -> int:
    """Take up reports, then write the table."""
    from tracenas.families import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", nargs="*", type=Path, default=[], help="reports")
    options = parser.parse_args(argv)
    results = read_records()
    for report in options.record:
        found = recorded(report, FAMILIES.names())
        print(f"{report.name}: {len(found)} test functions of the table")
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        results["tests"] |= found
        results["dates"] = {**results.get("dates", {}), **dict.fromkeys(found, today)}
    if options.record:
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    document = ROOT / "docs" / "families.md"
    text = with_table(document.read_text(encoding="utf-8"), table(results["tests"], FAMILIES.names()))
    document.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
