"""Finished blocks of a reconstruction in files, so that a killed one goes on to the same result."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tracenas.errors import UserError, first_line
from tracenas.pipeline.refit.work import BLOCKS, STARTED, read_started
from tracenas.pipeline.resume import check_same
from tracenas.refits.reconstruction import TrainedBlock
from tracenas.rundir import atomic_path, write_json

__all__ = ["BlockFiles"]

_RECORD = "record"
"""In a block's metadata: what became of it."""


class BlockFiles:
    """Finished blocks in a work directory; their tensors are memory-mapped, not read.

    Args:
        directory: that this process is at work in (`at_work`).
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, facts: Mapping[str, Any], start_loss: float) -> float:
        """Record what the blocks are trained from and on, or compare it with what is recorded.

        Args:
            start_loss: of the refit that they are trained from.

        Returns:
            That loss as it was in the beginning.

        Raises:
            UserError: if one of the facts is another.
        """
        started = read_started(self.directory)
        if "start_loss" not in started:
            write_json(self.directory / STARTED, {**started, **facts, "start_loss": start_loss})
            return start_loss
        owner, remedy = f"the work in {self.directory}", "; remove it to begin again"
        for name, value in facts.items():
            check_same(name, started.get(name), value, owner, remedy)
        return float(started["start_loss"])

    def get(self, index: int) -> TrainedBlock | None:
        """The block, if it is finished.

        Raises:
            UserError: if its file is damaged.
        """
        path = self._path(index)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                record = json.loads((file.metadata() or {})[_RECORD])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            after = math.inf if record["after"] is None else float(record["after"])
            return TrainedBlock(index, record["steps"], record["before"], after, record["kept"], tensors)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: holds no block of a reconstruction ({first_line(error)}); remove it") from error

    def put(self, block: TrainedBlock) -> TrainedBlock:
        """Write a finished block.

        Raises:
            UserError: if the disk is full.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in block.tensors.items()}
        with atomic_path(self._path(block.index)) as temporary:
            save_file(tensors, temporary, metadata={_RECORD: json.dumps(block.to_json())})
        written = self.get(block.index)
        assert written is not None
        return written

    def remove(self) -> None:
        """Remove the finished blocks, once they are in a checkpoint."""
        for path in self.directory.glob(BLOCKS):
            path.unlink()

    def _path(self, index: int) -> Path:
        return self.directory / BLOCKS.replace("*", f"{index:04d}")
