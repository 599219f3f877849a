"""Local files in place of a task's data set: FOLDER/<task>/<split>.jsonl, a JSON object per line, no network.

A split is `train`, `dev`, `validation` or `test`; anything after an underscore is ignored (`validation_1000`).
The columns are the original data set's. Two common variants are converted: boolq with `answer` (true or false)
in place of `label`, and hellaswag with `query`, `choices` and `gold` as lm-eval makes them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracenas.errors import UserError

__all__ = ["SPLITS", "LocalTask", "dataset", "local_task", "subjects"]

SPLITS = ("train", "dev", "validation", "test")

Row = dict[str, Any]

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
    for path in sorted(directory.glob("*.jsonl")):
        split = path.stem.partition("_")[0]
        if split in files:
            raise UserError(f"task-data {directory}: both {files[split].name} and {path.name} are split '{split}'")
        if split in SPLITS:
            files[split] = path
    if not files:
        raise UserError(f"task-data {directory}: no {', '.join(s + '.jsonl' for s in SPLITS)} in it")
    rows = {split: _rows(path, name) for split, path in files.items()}
    processed = name == "hellaswag" and all("ctx_a" not in r for part in rows.values() for r in part)
    return LocalTask(name, files, {s: len(r) for s, r in rows.items()}, processed)


def dataset(*, folder: str, task: str, subject: str | None = None, **_: Any) -> dict[str, Any]:
    """The splits as `datasets.Dataset`s, as lm-eval's `custom_dataset` wants them.

    Args:
        subject: rows of this `subject` only (MMLU).
    """
    from datasets import Dataset

    found = {}
    for split, path in local_task(Path(folder), task).files.items():
        rows = [row for row in _rows(path, task) if subject is None or row["subject"] == subject]
        if rows:
            found[split] = Dataset.from_list(rows)
    return found


def subjects(task: LocalTask) -> dict[str, dict[str, int]]:
    """Per subject: rows of every split."""
    counts: dict[str, dict[str, int]] = {}
    for split, path in task.files.items():
        for row in _rows(path, task.name):
            of_subject = counts.setdefault(str(row["subject"]), {})
            of_subject[split] = of_subject.get(split, 0) + 1
    return counts


@lru_cache(maxsize=32)
def _read(path: Path, stamp: tuple[int, int]) -> tuple[Row, ...]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        rows.append(row)
    return tuple(rows)


def _rows(path: Path, task: str) -> Sequence[Row]:
    """A file's rows in the columns the task reads."""
    status = path.stat()
    rows = [_converted(task, row) for row in _read(path, (status.st_mtime_ns, status.st_size))]
    if not rows:
        raise UserError(f"{path}: holds no rows")
    for number, row in enumerate(rows, start=1):
        if missing := [c for c in _COLUMNS.get(task, ()) if c not in row and "ctx_a" not in row]:
            raise UserError(
                f"{path}: row {number} has no '{missing[0]}'; task {task} needs {', '.join(_COLUMNS[task])}"
            )
    return rows


def _converted(task: str, row: Row) -> Row:
    if task == "boolq" and "label" not in row and "answer" in row:
        return {**row, "label": int(bool(row["answer"]))}
    if task == "hellaswag" and "label" not in row and "gold" in row:
        return {**row, "label": str(row["gold"])}
    return row
