"""What a run's comparison and its evaluation read of every model, and how long that takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tracenas.data import hub
from tracenas.data.decoding import compression, format_name
from tracenas.data.rows import ROW_FORMATS
from tracenas.data.sources import documents, is_tokens, parse_source
from tracenas.evaluation.suites import Request, requests
from tracenas.evaluation.task_data import local_task
from tracenas.evaluation.task_sizes import TASK_SIZES
from tracenas.pipeline.estimate import SearchEstimate
from tracenas.scoring.workload import Shape
from tracenas.space.architecture import Architecture

__all__ = ["Reading", "reading"]

_BYTES_PER_TOKEN = 4.1
"""Of English text: SmolLM2's and Qwen2.5's tokenizers make 4.0 to 4.3 of WikiText-2 and TinyStories."""
_HUB_BYTES = {"Salesforce/wikitext:wikitext-2-raw-v1@test": 1_290_590}
_SAMPLE = 1_000_000
"""Characters that are counted before a file's size stands for them."""
_PER_QUESTION = 16
"""What its share of two forward passes of eight rows costs beside a question's tokens, in tokens."""


@dataclass(frozen=True)
class Reading:
    """What an evaluation reads of every model.

    Args:
        windows, length: of the text; 0 windows without one.
        tasks: (questions, tokens of each) per task.
        unknown: texts and tasks of which nobody knows how much they are before they are fetched.
    """

    windows: int
    length: int
    tasks: tuple[tuple[int, int], ...] = ()
    unknown: tuple[str, ...] = ()

    def seconds(self, estimate: SearchEstimate, arch: Architecture, shape: Shape) -> float:
        """Of one model."""
        text = replace(shape, samples=self.windows, seq_len=self.length, rank=None)
        asked = [
            replace(text, samples=questions, seq_len=min(tokens + _PER_QUESTION, estimate.target.source.positions))
            for questions, tokens in self.tasks
        ]
        return estimate.forward(arch, text) + sum(estimate.forward(arch, part, head=False) for part in asked)


def reading(
    text: str | None,
    windows: int | None,
    length: int,
    section: Mapping[str, Any] | None = None,
    *,
    text_field: str | None = None,
) -> Reading:
    """What is read of a text and, as the settings of eval say, of tasks.

    Args:
        windows: at most; None: all.
        length: tokens of a window where the section says nothing.
    """
    section = section or {}
    length, windows = section.get("seq_len") or length, section.get("windows", windows)
    count = 0 if text is None else _windows(text, length, windows, text_field)
    wanted = requests(section.get("tasks"), section.get("suite"), section.get("shots"))
    known = [one for one in wanted if one.name in TASK_SIZES]
    tasks = tuple(_task(one, section.get("limit"), section.get("task_data")) for one in known)
    unknown = tuple(one.name for one in wanted if one.name not in TASK_SIZES)
    return Reading(count or 0, length, tasks, (*([str(text)] if count is None else []), *unknown))


def _task(wanted: Request, limit: int | None, folder: Path | None) -> tuple[int, int]:
    size, rows = TASK_SIZES[wanted.name], None
    if folder is not None:
        sizes = local_task(Path(folder), wanted.name).sizes
        rows = sizes.get(size.split, sizes.get("validation", max(sizes.values())))
    return size.read(wanted.shots or 0, limit, rows)


def _windows(text: str, length: int, limit: int | None, text_field: str | None) -> int | None:
    """Windows of a text, at most `limit`; None where it is not here and its size not known."""
    if Path(text).exists() and is_tokens(text):
        from tracenas.data.tokens import load_tokens  # imports torch

        there = len(load_tokens(text))
    elif Path(text).exists():
        there = int(_characters(text, text_field) / _BYTES_PER_TOKEN) // length
    elif (size := _hub_bytes(text)) is not None:
        there = int(size / _BYTES_PER_TOKEN) // length
    else:
        return limit
    return there if limit is None else min(there, limit)


def _hub_bytes(text: str) -> int | None:
    names = parse_source(text).names
    return _HUB_BYTES.get(str(hub.parse(text, use="held_out"))) if len(names) == 1 else None


def _characters(text: str, text_field: str | None) -> int:
    """Of a file's documents; of much text in rows or compressed as many as the file has bytes, about."""
    path, read = Path(text), 0
    size = path.stat().st_size
    if format_name(path) not in ROW_FORMATS and compression(path) is None:
        return size
    for document in documents(text, text_field=text_field):
        read += len(document)
        if read > _SAMPLE:
            return max(size, read)
    return read
