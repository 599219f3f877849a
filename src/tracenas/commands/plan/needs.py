"""Does it fit: what the stages need of memory and disk, beside what this machine has."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.formats import data_size
from tracenas.resident import host_memory
from tracenas.scoring.workload import Memory

__all__ = ["Need", "needs"]

_TRAINING = 16
"""Bytes per trained parameter: weights, gradients and two moments of AdamW in float32."""
_OPTIONS = {"host memory": "--host-memory", "GPU memory": "--device-memory"}
_CHECKPOINTS = 3
"""Training states on disk at a time, at most: the newest two and the best."""


@dataclass(frozen=True)
class Need:
    """Bytes that something takes.

    Args:
        name: of what: `GPU memory`, `host memory`, `disk`.
        needed: at the peak; an estimate.
        available: on this machine; None where that is not known.
        least: at the peak with `--host-memory`, of a GPU `--device-memory`; None where that is no less.
        files: bytes of temporary files then.
    """

    name: str
    needed: int
    available: int | None
    least: int | None = None
    files: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether there is as much; None where that is not known."""
        return None if self.available is None else self.needed <= self.available

    def describe(self) -> str:
        """`1.9 GiB of 24.0 GiB: fits`."""
        beside = "" if self.files is None else f" and {data_size(self.files)} of temporary files"
        less = "" if self.least is None else f", {data_size(self.least)} with {_OPTIONS[self.name]}{beside}"
        if self.available is None:
            return f"{data_size(self.needed)}{less} (what this machine has is not known)"
        verdict = "fits" if self.fits else "does not fit"
        return f"{data_size(self.needed)} of {data_size(self.available)}: {verdict}{less}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {**vars(self), "fits": self.fits}


def needs(
    memory: Memory,
    written: int,
    *,
    device: str,
    gpu: int | None,
    least: int,
    streamed: int | None = None,
    download: int = 0,
    trained: int | None = None,
    adapters: bool = False,
    taught: bool = False,
    kept: int = 1,
) -> tuple[Need, ...]:
    """What a search, the checkpoints and recoveries take.

    Args:
        memory: of the search.
        written: bytes of the checkpoints.
        device: `cpu` or `cuda`.
        gpu: bytes of one GPU, if there is one.
        least: bytes of host memory that search and checkpoint take with `--host-memory`.
        streamed: bytes of a GPU that they take with `--device-memory`; None: no less.
        download: bytes of a model that is not here yet.
        trained: parameters that the largest recovery trains, on one device; None: there is no recovery.
        kept: recoveries whose training states stay.
        adapters: whether it trains adapters alone.
        taught: whether the dense model runs beside it.
    """
    on_gpu = device == "cuda"
    search = memory.total - memory.compensation if on_gpu else memory.total
    training = 0 if trained is None else trained * (4 if adapters else _TRAINING) + taught * memory.weights
    states = 0 if trained is None or adapters else kept * _CHECKPOINTS * _TRAINING * trained
    host = memory.compensation + memory.weights if on_gpu else max(search, training)
    disk = shutil.disk_usage(Path.cwd()).free
    machine = host_memory()
    files = memory.compensation + (0 if on_gpu else memory.weights)
    found = [
        Need("host memory", host, machine, *((least, files) if least < host else ())),
        Need("disk", download + written + states, disk),
    ]
    if not on_gpu:
        return tuple(found)
    whole = max(search, training)
    less = streamed if trained is None and streamed is not None and streamed < whole else None
    return Need("GPU memory", whole, gpu, less), *found
