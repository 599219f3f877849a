"""The demo model that ships with the package, with held-out text and text to calibrate on.

A Llama of 2.9 million parameters that reads Python documentation; `scripts/demo_model` trains it.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["calibration_path", "heldout_path", "model_path"]

_HERE = Path(__file__).resolve().parent


def model_path() -> Path:
    """The folder that `from_pretrained` loads: bfloat16 weights, config and tokenizer."""
    return _existing("model")


def heldout_path() -> Path:
    """Text the model was not trained on; documents are parted by ``<|endoftext|>`` lines."""
    return _existing("heldout.txt")


def calibration_path() -> Path:
    """A sample of the training text to score candidates on, parted like the held-out text."""
    return _existing("calibration.txt")


def _existing(name: str) -> Path:
    path = _HERE / name
    if not path.exists():
        raise FileNotFoundError(f"the demo's {name} is missing from this installation: {path}")
    return path
