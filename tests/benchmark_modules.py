"""The modules of benchmarks/ as its programs import them; what tests have of the same name comes first."""

import importlib
import sys
from pathlib import Path
from typing import Any

__all__ = ["load_benchmark"]

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load_benchmark(name: str) -> Any:
    """A module of benchmarks/ or benchmarks/reference/ by its name: `rivals.sleb`, `setting`."""
    for folder in (BENCHMARKS, BENCHMARKS / "reference"):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
    return importlib.import_module(name)
