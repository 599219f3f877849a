"""Small searches as command lines, and their journals as what is compared."""

import json
from pathlib import Path
from typing import Any

import pytest

__all__ = ["SCORED", "SEARCH", "journal", "search"]

SIZES = ["--population", "6", "--elites", "2", "--iterations", "3", "--samples", "4", "--seq-len", "32"]
SEARCH = [*SIZES, "--channel-quantum", "8", "--params", "60%", "--threads", "1"]
SCORED = [
    ("llama", ()),
    pytest.param("mixtral", (), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "phi"), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "kl", "--race", "off"), marks=pytest.mark.slow),
    pytest.param("llama", ("--proxy", "loss=0.5,phi=0.5"), marks=pytest.mark.slow),
]
"""Models, and options that score differently."""


def search(home: Path, out: Path, *options: str, model: str = "llama") -> list[str]:
    """Of one of `save_families`' models."""
    return ["search", str(home / model), "--data", str(home / "text.txt"), "--out", str(out), *SEARCH, *options]


def journal(run: Path) -> list[dict[str, Any]]:
    """But for times."""
    records = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]
