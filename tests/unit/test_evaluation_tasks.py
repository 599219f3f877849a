"""Suites, the paper's average, local task files and the overlays over lm-eval's definitions."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from tracenas.errors import UserError
from tracenas.evaluation.overlay import Source, write_overlay
from tracenas.evaluation.suites import PAPER_AVERAGE, PAPER_SHOTS, Request, TaskResult, paper_average, requests
from tracenas.evaluation.task_data import check_values, dataset, local_task, subjects

PIQA = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}


def write(folder: Path, task: str, split: str, rows: Sequence[Any]) -> Path:
    path = folder / task / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


# ---- which tasks ------------------------------------------------------------------------------------


def test_the_papers_suite_has_nine_tasks_with_their_shots() -> None:
    found = {r.name: r.shots for r in requests(None, "paper")}
    assert found == PAPER_SHOTS
    assert sorted(found.values()) == [0, 0, 0, 0, 0, 5, 5, 10, 25]
    assert set(PAPER_AVERAGE) == set(PAPER_SHOTS) - {"mmlu"}


def test_a_task_may_name_its_shots_and_overrides_the_suite() -> None:
    assert requests("piqa, arc_challenge:25", None) == (Request("piqa", None), Request("arc_challenge", 25))
    assert requests("piqa,arc_challenge:25", None, 3) == (Request("piqa", 3), Request("arc_challenge", 25))
    assert {r.name: r.shots for r in requests("mmlu:0,openbookqa", "paper")}["mmlu"] == 0


@pytest.mark.parametrize(
    ("tasks", "suite", "message"),
    [
        (None, "papers", "unknown suite 'papers': did you mean 'paper'"),
        ("piqa,,boolq", None, "separated by commas"),
        ("piqa:few", None, "'few' is not a number of shots"),
    ],
)
def test_a_wrong_list_is_refused(tasks: str | None, suite: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        requests(tasks, suite)


def test_the_average_is_over_eight_tasks_with_the_papers_metrics() -> None:
    """Table 2's row for Llama-2-7B averages to the paper's 70.16."""
    row = {"piqa": 77.69, "winogrande": 74.11, "arc_easy": 76.34, "arc_challenge": 52.81}
    row |= {"hellaswag": 78.96, "sciq": 93.80, "logiqa": 29.80, "boolq": 77.73}
    results = {
        name: TaskResult({metric: row[name] / 100, f"{metric}_stderr": 0.01}, 100, PAPER_SHOTS[name])
        for name, metric in PAPER_AVERAGE.items()
    }
    found = paper_average(results)
    assert found is not None and found.stderr is not None
    assert round(100 * found.value, 2) == 70.16 or abs(100 * found.value - 70.16) < 0.006
    assert found.stderr == pytest.approx(0.01 / 8**0.5)
    assert paper_average({k: v for k, v in results.items() if k != "logiqa"}) is None
    results["winogrande"] = TaskResult(results["winogrande"].metrics, 100, shots=0)
    assert paper_average(results) is None


# ---- local files ------------------------------------------------------------------------------------


def test_files_are_found_by_split_and_read_as_data_sets(tmp_path: Path) -> None:
    write(tmp_path, "piqa", "validation_1000", [PIQA, {**PIQA, "goal": "line\u2028separator"}])
    write(tmp_path, "piqa", "train", [PIQA])
    write(tmp_path, "piqa", "notes", ["not read"])
    found = local_task(tmp_path, "piqa")
    assert found.sizes == {"train": 1, "validation": 2}
    loaded = dataset(folder=str(tmp_path), task="piqa", version=1.0)
    assert loaded["validation"][1]["goal"] == "line\u2028separator"


def test_boolq_and_hellaswag_variants_are_converted(tmp_path: Path) -> None:
    write(tmp_path, "boolq", "validation", [{"passage": "p", "question": "q", "answer": True}])
    write(tmp_path, "hellaswag", "validation", [{"ind": 1, "query": "q", "choices": ["a", "b"], "gold": 1}])
    assert dataset(folder=str(tmp_path), task="boolq")["validation"][0]["label"] == 1
    assert dataset(folder=str(tmp_path), task="hellaswag")["validation"][0]["label"] == "1"
    assert local_task(tmp_path, "hellaswag").processed
    write(tmp_path, "hellaswag", "validation", [{"ctx_a": "a", "ctx_b": "b", "endings": [], "label": "0"}])
    assert not local_task(tmp_path, "hellaswag").processed


def test_mmlu_is_counted_and_read_by_subject(tmp_path: Path) -> None:
    row = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 1}
    write(tmp_path, "mmlu", "test", [{**row, "subject": s} for s in ("anatomy", "virology", "anatomy")])
    write(tmp_path, "mmlu", "dev", [{**row, "subject": "anatomy"}])
    assert subjects(local_task(tmp_path, "mmlu")) == {"anatomy": {"test": 2, "dev": 1}, "virology": {"test": 1}}
    assert {k: len(v) for k, v in dataset(folder=str(tmp_path), task="mmlu", subject="virology").items()} == {"test": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PIQA, '{"goal": "cut'], "line 2 is not JSON"),
        ([PIQA, "[1]"], "line 2 is a JSON list"),
        ([{"goal": "g", "sol1": "a", "label": 0}], "line 1 has no 'sol2'; task piqa needs goal, sol1, sol2, label"),
        (["null", PIQA], "line 1 is a JSON null"),
        (["", ""], "holds no rows"),
        ([], "is empty"),
        ([PIQA, PIQA, {**PIQA, "label": "first"}, PIQA], "line 3 makes no table with the rows before it: .*'first'"),
        ([PIQA, {**PIQA, "goal": ["x"]}], "line 2 makes no table with the rows before it"),
        ([{**PIQA, "further": text} for text in ("x", "y", "\ud800")], "line 3 makes no table"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    write(tmp_path, "piqa", "validation", rows)
    with pytest.raises(UserError, match=message):
        local_task(tmp_path, "piqa")


ARC = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}
HELLASWAG = {"query": "q", "choices": ["x", "y"], "label": "1"}
LOGIQA = {"context": "c", "question": "q", "options": list("wxyz"), "label": "d\n"}
MMLU = {"question": "q", "subject": "anatomy", "choices": list("wxyz"), "answer": 3}
WINOGRANDE = {"sentence": "a _ b", "option1": "x", "option2": "y", "answer": "2"}


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("piqa", PIQA, ""),
        ("piqa", {**PIQA, "label": 2}, "line 2: 'label' is 2, accepted: 0, 1"),
        ("piqa", {**PIQA, "label": None}, "line 2: 'label' is None"),
        ("piqa", {**PIQA, "goal": None}, "line 2: 'goal' holds a null, not a string"),
        ("piqa", {**PIQA, "goal": "\ud800"}, "line 2 makes no table"),
        ("arc_easy", ARC, ""),
        ("arc_easy", {**ARC, "answerKey": "C"}, "line 2: 'answerKey' is 'C', accepted: 'A', 'B'"),
        ("arc_easy", {**ARC, "choices": None}, r"line 2: no choices can be read from choices .null."),
        ("hellaswag", HELLASWAG, ""),
        ("hellaswag", {**HELLASWAG, "label": ""}, "line 2: 'label' is ''"),
        ("logiqa", LOGIQA, ""),
        ("logiqa", {**LOGIQA, "label": "e"}, "line 2: 'label' is 'e', accepted: 'a', 'b', 'c', 'd'"),
        ("mmlu", MMLU, ""),
        ("mmlu", {**MMLU, "answer": 4}, "line 2: 'answer' is 4"),
        ("winogrande", WINOGRANDE, ""),
        ("winogrande", {**WINOGRANDE, "answer": ""}, "line 2: 'answer' is '', accepted: '1', '2'"),
    ],
)
def test_rows_of_the_evaluated_split_hold_text_and_one_of_the_answers(
    tmp_path: Path, task: str, row: dict[str, Any], message: str
) -> None:
    good = {"piqa": PIQA, "arc_easy": ARC, "hellaswag": HELLASWAG, "logiqa": LOGIQA, "mmlu": MMLU}.get(task, WINOGRANDE)
    write(tmp_path, task, "validation", [good, row])
    write(tmp_path, task, "test", [{**good, "label": None, "answer": None}])  # public test splits have no answers
    if not message:
        return check_values(local_task(tmp_path, task), ["validation"])
    with pytest.raises(UserError, match=message):
        check_values(local_task(tmp_path, task), ["validation"])
    return None


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ("piqa", {**PIQA, "sol2": ""}),
        ("arc_easy", {**ARC, "choices": {"text": ["", "y"], "label": ["A", "B"]}}),
        ("hellaswag", {**HELLASWAG, "choices": ["x", ""]}),
        ("logiqa", {**LOGIQA, "options": ["w", "", "y", "z"]}),
    ],
)
def test_an_empty_answer_in_the_first_question_is_refused(tmp_path: Path, task: str, row: dict[str, Any]) -> None:
    """lm-eval looks at its first letter; in later questions it takes an empty answer as it is."""
    good = {"piqa": PIQA, "arc_easy": ARC, "hellaswag": HELLASWAG, "logiqa": LOGIQA}[task]
    write(tmp_path, task, "test", [good, row])
    check_values(local_task(tmp_path, task), ["test"])
    write(tmp_path, task, "test", [row, good, good])
    with pytest.raises(UserError, match="test.jsonl', line 1: an answer is empty"):
        check_values(local_task(tmp_path, task), ["test"])


def test_compressed_and_parquet_files_are_read(tmp_path: Path) -> None:
    text = write(tmp_path, "piqa", "validation_1000", [PIQA, PIQA]).read_bytes()
    (tmp_path / "piqa" / "validation_1000.jsonl").unlink()
    (tmp_path / "piqa" / "validation_1000.jsonl.gz").write_bytes(gzip.compress(text))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([PIQA]), tmp_path / "piqa" / "train.parquet")
    assert local_task(tmp_path, "piqa").sizes == {"validation": 2, "train": 1}


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        local_task(tmp_path / "none", "piqa")
    write(tmp_path, "piqa", "validation", [PIQA])
    with pytest.raises(UserError, match="no folder 'sciq' in it .there are: piqa."):
        local_task(tmp_path, "sciq")
    (tmp_path / "sciq").mkdir()
    with pytest.raises(UserError, match="no train.jsonl, dev.jsonl, validation.jsonl, test.jsonl"):
        local_task(tmp_path, "sciq")
    write(tmp_path, "piqa", "validation_2", [PIQA])
    with pytest.raises(UserError, match="both validation.jsonl and validation_2.jsonl"):
        local_task(tmp_path, "piqa")
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "validation.jsonl").write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(UserError, match="not UTF-8"):
        local_task(tmp_path, "boolq")


# ---- where questions and examples come from ------------------------------------------------------------


def builtin(tmp_path: Path, **config: Any) -> Path:
    path = tmp_path / "builtin.yaml"
    path.write_text(yaml.safe_dump({"task": "piqa", **config}) + "doc_to_text: !function made.up\n")
    return path


@pytest.mark.parametrize(
    ("splits", "shots", "source", "fewshot"),
    [
        (("validation",), 0, Source("validation", ""), None),
        (("validation",), 2, Source("validation", "validation, without the question itself"), None),
        (("train", "validation"), 2, Source("validation", "train"), None),
        (("validation", "test"), 2, Source("test", "validation"), None),
        (("test",), 2, Source("test", "test, without the question itself"), "test"),
    ],
)
def test_examples_come_from_training_then_validation_then_the_split_itself(
    tmp_path: Path, splits: tuple[str, ...], shots: int, source: Source, fewshot: str | None
) -> None:
    for split in splits:
        write(tmp_path, "piqa", split, [PIQA] * 4)
    path = builtin(tmp_path, training_split="train", validation_split="validation", test_split="test")
    assert write_overlay(tmp_path, "piqa", path, shots, tmp_path) == source
    text = (tmp_path / "piqa.yaml").read_text()
    assert "custom_dataset: !function tracenas.evaluation.task_data.dataset" in text
    written = yaml.safe_load(text.replace("!function ", ""))
    assert written["include"] == str(path) and written["fewshot_split"] == fewshot
    assert written["test_split"] == ("test" if "test" in splits else None)
    assert written["training_split"] == ("train" if "train" in splits else None)


def test_too_few_rows_for_the_shots_and_no_split_to_evaluate_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "piqa", "validation", [PIQA] * 3)
    path = builtin(tmp_path, training_split="train", validation_split="validation")
    with pytest.raises(UserError, match="with 3 shots needs 4 rows in validation.jsonl, there are 3"):
        write_overlay(tmp_path, "piqa", path, 3, tmp_path)
    write(tmp_path, "piqa", "validation", [PIQA] * 4)
    write_overlay(tmp_path, "piqa", path, 3, tmp_path)
    with pytest.raises(UserError, match="piqa has no test.jsonl to evaluate"):
        write_overlay(tmp_path, "piqa", builtin(tmp_path, test_split="test"), 0, tmp_path)
    with pytest.raises(UserError, match="is a group"):
        write_overlay(tmp_path, "piqa", builtin(tmp_path, group="several"), 0, tmp_path)
