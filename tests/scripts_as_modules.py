"""The programs of scripts/ as modules."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

__all__ = ["SCRIPTS", "load_script"]

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name: str) -> Any:
    """scripts/NAME.py, imported anew."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module
