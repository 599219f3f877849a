"""Where experiment trackers write where their own environment says nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PROJECT", "TENSORBOARD", "WANDB", "destinations"]

PROJECT = "tracenas"
"""Project or experiment that runs are reported to."""

TENSORBOARD, WANDB = "TENSORBOARD_LOGGING_DIR", "WANDB_PROJECT"
"""Environment variables that say otherwise, in transformers' and wandb's words; MLFLOW_EXPERIMENT_NAME is mlflow's."""


@contextmanager
def destinations(out: Path) -> Iterator[None]:
    """TensorBoard's files go to OUT/tensorboard and the others' to the project `PROJECT`, unless the environment says
    otherwise."""
    places = {TENSORBOARD: str(out / "tensorboard"), WANDB: PROJECT, "MLFLOW_EXPERIMENT_NAME": PROJECT}
    unsaid = {name: value for name, value in places.items() if name not in os.environ}
    os.environ.update(unsaid)
    try:
        yield
    finally:
        for name in unsaid:
            os.environ.pop(name, None)
