"""Local files in place of a task's data set: FOLDER/<task>/<split>.jsonl, a JSON object per line, no network.

JSON lines may be compressed (`.jsonl.gz`); Parquet files are read as well. A split is `train`, `dev`, `validation` or
`test`; anything after an underscore is ignored (`validation_1000`). The columns are the original data set's. Two common
variants are converted: boolq with `answer` (true or false) in place of `label`, and hellaswag with `query`, `choices`
and `gold` as lm-eval makes them.
"""

import bisect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracenas.data.decoding import format_name, require_text, type_name
from tracenas.data.rows import Row, field_names, rows
from tracenas.errors import UserError, first_line

__all__ = ["SPLITS", "LocalTask", "check_values", "dataset", "local_task", "subjects"]

SPLITS = ("train", "dev", "validation", "test")

_FORMATS = (".jsonl", ".ndjson", ".parquet")
_COLUMNS: dict[str, tuple[str, ...]] = {
    "arc_challenge": ("question", "choices", "answerKey"),
    "arc_easy": ("question", "choices", "answerKey"),
    "boolq": ("passage", "question", "label"),
    "hellaswag": ("query", "choices", "label"),
    "lambada_openai": ("text",),
    "logiqa": ("context", "question", "options", "label"),
    "mmlu": ("question", "subject", "choices", "answer"),
    "openbookqa": ("question_stem", "choices", "answerKey"),
    "piqa": ("goal", "sol1", "sol2", "label"),
    "sciq": ("question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"),
    "winogrande": ("sentence", "option1", "option2", "answer"),
}
_NO_TEXT = ("answer", "choices", "label", "options")


def _numbers(choices: Collection[Any]) -> list[str | int]:
    return [*map(str, range(len(choices))), *range(len(choices))]


_ANSWERS: dict[str, tuple[str, Callable[[Row], Collection[Any]]]] = {
    "arc_challenge": ("answerKey", lambda row: row["choices"]["label"]),
    "arc_easy": ("answerKey", lambda row: row["choices"]["label"]),
    "boolq": ("label", lambda row: (0, 1)),
    "hellaswag": ("label", lambda row: _numbers(row.get("choices") or row["endings"])),
    "logiqa": ("label", lambda row: "abcd"[: len(row["options"])]),
    "mmlu": ("answer", lambda row: [*range(len(row["choices"])), *"ABCD"]),
    "openbookqa": ("answerKey", lambda row: row["choices"]["label"]),
    "piqa": ("label", lambda row: (0, 1)),
    "winogrande": ("answer", lambda row: ("1", "2")),
}
"""Per task, the column of the answer and what may stand in it; lm-eval takes anything else for a wrong answer."""

_TEXTS: dict[str, Callable[[Row], Collection[Any]]] = {
    "arc_challenge": lambda row: row["choices"].get("text", ()),
    "arc_easy": lambda row: row["choices"].get("text", ()),
    "hellaswag": lambda row: row.get("choices") or row["endings"],
    "logiqa": lambda row: row["options"],
    "openbookqa": lambda row: row["choices"].get("text", ()),
    "piqa": lambda row: (row["sol1"], row["sol2"]),
    "sciq": lambda row: [row[name] for name in _COLUMNS["sciq"][1:5]],
}
"""Per task, the texts that are chosen from; lm-eval asks those of a split's first row for their first letter."""


@dataclass(frozen=True)
class LocalTask:
    """A task's files.

    Args:
        name: of the task.
        files: per split.
        sizes: rows per split.
        processed: whether rows are as lm-eval's own preprocessing leaves them (hellaswag).
    """

    name: str
    files: Mapping[str, Path]
    sizes: Mapping[str, int]
    processed: bool = False


def local_task(folder: Path, name: str) -> LocalTask:
    """Find and check a task's files.

    Raises:
        UserError: if there are none, or a file is not what the task needs; the file and line are named.
    """
    directory = folder / name
    if not folder.is_dir():
        raise UserError(f"task-data {folder}: no such directory")
    if not directory.is_dir():
        there = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        raise UserError(f"task-data {folder}: no folder '{name}' in it (there are: {', '.join(there) or 'none'})")
    files: dict[str, Path] = {}
    for path in sorted(p for p in directory.iterdir() if format_name(p) in _FORMATS):
        split = path.name.lower().rpartition(format_name(path))[0].partition("_")[0]
        if split in files:
            raise UserError(f"task-data {directory}: both {files[split].name} and {path.name} are split '{split}'")
        if split in SPLITS:
            files[split] = path
    if not files:
        raise UserError(f"task-data {directory}: no {', '.join(s + '.jsonl' for s in SPLITS)} in it")
    rows_by_split = {split: _rows(path, name) for split, path in files.items()}
    processed = name == "hellaswag" and all("ctx_a" not in row for part in rows_by_split.values() for _, row in part)
    return LocalTask(name, files, {split: len(part) for split, part in rows_by_split.items()}, processed)


def check_values(task: LocalTask, splits: Iterable[str]) -> None:
    """Check that these splits' rows hold text where the task wants text, and an answer that is one of the choices.

    Splits that are not used may lack answers, as public test splits do.

    Raises:
        UserError: naming the first such row.
    """
    columns = set(_COLUMNS.get(task.name, ())) - set(_NO_TEXT)
    for where, row in (place for split in sorted(set(splits)) for place in _rows(task.files[split], task.name)):
        for column in columns & row.keys():
            require_text(row[column], f"{where}: '{column}'")
        if task.name in _ANSWERS:
            _check_answer(row, *_ANSWERS[task.name], where)
    for where, row in (_rows(task.files[split], task.name)[0] for split in sorted(set(splits))):
        if task.name in _TEXTS and "" in _TEXTS[task.name](row):
            raise UserError(f"{where}: an answer is empty, which lm-eval does not take in a split's first question")


def _check_answer(row: Row, column: str, answers: Callable[[Row], Collection[Any]], where: str) -> None:
    try:
        accepted = list(answers(row))
    except (KeyError, TypeError) as error:
        fields = ", ".join(f"{k} ({type_name(v)})" for k, v in row.items() if k in (*_NO_TEXT, "endings"))
        raise UserError(f"{where}: no choices can be read from {fields or field_names(row)}") from error
    value = row[column]
    if isinstance(value, str) and accepted and isinstance(accepted[0], str):
        value = value.strip()
    if isinstance(value, (dict, list)) or value not in accepted:
        raise UserError(f"{where}: '{column}' is {row[column]!r}, accepted: {field_names(map(repr, accepted))}")


def dataset(*, folder: str, task: str, subject: str | None = None, **_: Any) -> dict[str, Any]:
    """The splits as `datasets.Dataset`s, as lm-eval's `custom_dataset` wants them.

    Args:
        subject: rows of this `subject` only (MMLU).
    """
    from datasets import Dataset

    splits = {}
    for split, path in local_task(Path(folder), task).files.items():
        part = [row for _, row in _rows(path, task) if subject is None or row["subject"] == subject]
        if part:
            splits[split] = Dataset.from_list(part)
    return splits


def subjects(task: LocalTask) -> dict[str, dict[str, int]]:
    """Per subject: rows of every split."""
    counts: dict[str, dict[str, int]] = {}
    for split, path in task.files.items():
        for _, row in _rows(path, task.name):
            of_subject = counts.setdefault(str(row["subject"]), {})
            of_subject[split] = of_subject.get(split, 0) + 1
    return counts


def _rows(path: Path, task: str) -> tuple[tuple[str, Row], ...]:
    """A file's rows in the columns the task reads, each with its place."""
    status = path.stat()
    return _read(path, task, (status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=32)
def _read(path: Path, task: str, stamp: tuple[int, int]) -> tuple[tuple[str, Row], ...]:
    table = tuple((where, _converted(task, row)) for where, row in rows(path))
    if not table:
        raise UserError(f"'{path}' holds no rows")
    for where, row in table:
        if missing := [c for c in _COLUMNS.get(task, ()) if c not in row and "ctx_a" not in row]:
            raise UserError(f"{where} has no '{missing[0]}'; task {task} needs {', '.join(_COLUMNS[task])}")
    _check_table(table)
    return table


def _check_table(table: tuple[tuple[str, Row], ...]) -> None:
    """Columns must be of one type; the first row of another is named."""
    from datasets import Dataset

    def reason(count: int) -> str | None:
        try:
            Dataset.from_list([row for _, row in table[:count]])
        except Exception as error:  # pyarrow's, and those of Python's own conversions
            return first_line(error)
        return None

    if reason(len(table)) is not None:
        place = bisect.bisect_left(range(1, len(table) + 1), True, key=lambda count: reason(count) is not None)
        raise UserError(f"{table[place][0]} makes no table with the rows before it: {reason(place + 1)}")


def _converted(task: str, row: Row) -> Row:
    if task == "boolq" and "label" not in row and "answer" in row:
        return {**row, "label": int(bool(row["answer"]))}
    if task == "hellaswag" and "label" not in row and "gold" in row:
        return {**row, "label": str(row["gold"])}
    return row
