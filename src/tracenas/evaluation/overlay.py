"""lm-eval's built-in tasks on local files: one overlay YAML per task, which includes the built-in one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tracenas.errors import UserError
from tracenas.evaluation.task_data import LocalTask, check_values, local_task, subjects

__all__ = ["Source", "write_overlay"]

_DATASET = "custom_dataset: !function tracenas.evaluation.task_data.dataset\n"
_SPLIT_KEYS = ("training_split", "validation_split", "test_split", "fewshot_split")


@dataclass(frozen=True)
class Source:
    """Where an overlaid task takes its questions and its examples from."""

    split: str
    shots_from: str


def write_overlay(folder: Path, name: str, builtin: Path, shots: int, target: Path) -> Source:
    """Write the overlay of one task (or of the MMLU group) into `target`.

    Args:
        folder: of the local files.
        builtin: lm-eval's YAML of the task or group.
        shots: examples per question; where they come from is decided here.

    Raises:
        UserError: if files are missing, or too few rows for the shots.
    """
    local = local_task(folder, name)
    config = _plain(builtin)
    if name == "mmlu" and "group" in config:
        return _write_mmlu(folder, local, builtin, shots, target)
    if "task" not in config or "group" in config:
        raise UserError(f"task '{name}' is a group of lm-eval; with task-data, name its tasks")
    source, splits = _splits(config, local, local.sizes, shots)
    _write(target / f"{name}.yaml", builtin, {"task": name, **splits, **_dataset(folder, local)})
    return source


def _write_mmlu(folder: Path, local: LocalTask, builtin: Path, shots: int, target: Path) -> Source:
    """MMLU: the group, its four parts, and a task per subject that has rows to evaluate."""
    source = Source("", "")
    rows = subjects(local)
    definitions = {str(_plain(p)["dataset_name"]): p for p in builtin.parent.glob("mmlu_*.yaml")}
    if unknown := sorted(set(rows) - set(definitions)):
        raise UserError(f"task-data {local.files[next(iter(local.files))]}: '{unknown[0]}' is no subject of MMLU")
    tags = set()
    for subject, sizes in sorted(rows.items()):
        config = _plain(definitions[subject])
        tags.add(config["tag"])
        source, splits = _splits(config, local, sizes, shots, f"mmlu ({subject})")
        data = {**_dataset(folder, local), "task": config["task"], **splits}
        data["dataset_kwargs"]["subject"] = subject
        _write(target / f"{config['task']}.yaml", definitions[subject], data)
    parts = []
    for path in sorted(builtin.parent.glob("_mmlu_*.yaml")):
        config = _plain(path)
        if "group" in config and set(config["task"]) & tags:
            parts.append(config["group"])
            _write(target / path.name, path, {"group": config["group"], "task": sorted(set(config["task"]) & tags)})
    order = [part for part in _plain(builtin)["task"] if part in parts]
    _write(target / builtin.name, builtin, {"group": "mmlu", "task": order})
    return source


def _dataset(folder: Path, local: LocalTask) -> dict[str, Any]:
    data: dict[str, Any] = {
        "dataset_path": None,
        "dataset_name": None,
        "dataset_kwargs": {"folder": str(folder.resolve()), "task": local.name},
    }
    return {**data, "process_docs": None} if local.processed else data


def _splits(
    config: Mapping[str, Any], local: LocalTask, sizes: Mapping[str, int], shots: int, name: str | None = None
) -> tuple[Source, dict[str, str | None]]:
    """The task's splits with those that are not there set to null, and where questions and shots come from.

    Without a split of examples they are taken from the validation split, or from the evaluated split itself;
    lm-eval then leaves out the question that is being asked.
    """
    name = name or local.name
    splits: dict[str, str | None] = {k: config.get(k) if config.get(k) in sizes else None for k in _SPLIT_KEYS}
    evaluated = splits["test_split"] or splits["validation_split"]
    if evaluated is None:
        wanted = " or ".join(f"{config[k]}.jsonl" for k in ("validation_split", "test_split") if config.get(k))
        raise UserError(
            f"task-data: {name} has no {wanted} to evaluate in {local.files[next(iter(local.files))].parent}"
        )
    pool = splits["fewshot_split"] or splits["training_split"] or splits["validation_split"] or evaluated
    if pool == evaluated:
        # lm-eval leaves the question out of its own examples where fewshot_split equals test_split; both may be null.
        splits["fewshot_split"] = splits["test_split"]
    check_values(local, {pool, evaluated} if shots else {evaluated})
    needed = shots + (splits["fewshot_split"] == splits["test_split"])
    if shots and sizes[pool] < needed:
        raise UserError(
            f"task-data: {name} with {shots} shots needs {needed} rows in {pool}.jsonl, there are {sizes[pool]}; "
            "add train.jsonl or ask for fewer shots"
        )
    if not shots:
        return Source(evaluated, ""), splits
    return Source(evaluated, pool + (", without the question itself" if pool == evaluated else "")), splits


class _Loader(yaml.SafeLoader):
    """Reads `!function name` as the name."""


def _function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


_Loader.add_constructor("!function", _function)


def _plain(path: Path) -> dict[str, Any]:
    """A task's YAML with what it includes; functions stay names."""

    data: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    included = data.pop("include", [])
    merged: dict[str, Any] = {}
    for other in included if isinstance(included, list) else [included]:
        merged.update(_plain(path.parent / other))
    return {**merged, **data}


def _write(path: Path, builtin: Path, changes: Mapping[str, Any]) -> None:
    text = yaml.safe_dump({"include": str(builtin.resolve()), **changes}, sort_keys=False)
    path.write_text(text + ("" if "group" in changes else _DATASET), encoding="utf-8")
