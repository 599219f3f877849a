"""The checkpoints of a run: one of one size, with rivals where they are recovered, or one of every size of a front."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracenas.config import RunConfig

__all__ = [
    "CHECKPOINT",
    "CHECKPOINTS",
    "PRUNED",
    "RECOVERED_CHECKPOINT",
    "Written",
    "models",
    "rival_directory",
    "size_directory",
]

CHECKPOINT, RECOVERED_CHECKPOINT = "pruned", "recovered"
"""Directories of an architecture's checkpoints."""
PRUNED = "pruned.json"
"""Beside them: what `prune` said."""
CHECKPOINTS = "checkpoints.json"
"""Of a run of a front: what its checkpoints cost and lose."""
_SIZES = "checkpoints"


@dataclass(frozen=True)
class Written:
    """An architecture of which the run has checkpoints.

    Args:
        name: as it is called in tables.
        home: where it is pruned and recovered.
        arch: the file of the architecture, as `prune` takes it.
    """

    name: str
    home: Path
    arch: Path

    @property
    def pruned(self) -> Path:
        """The checkpoint as it was pruned."""
        return self.home / CHECKPOINT

    @property
    def recovered(self) -> Path:
        """The recovered checkpoint."""
        return self.home / RECOVERED_CHECKPOINT

    def last(self, config: RunConfig) -> Path:
        """The checkpoint that the run comes to."""
        return self.pruned if config.recover is None else self.recovered


def rival_directory(out: Path, name: str) -> Path:
    """Where a rival of the found architecture is pruned and recovered."""
    return out / "rivals" / name.replace(" ", "-")


def size_directory(config: RunConfig, size: str) -> Path:
    """Where the checkpoint of a size is pruned and recovered: a share of the first cost, or an amount with its unit."""
    cost = config.front_costs[0]
    share, percent = size.removesuffix("%"), size.endswith("%")
    unit = "ms" if cost.endswith("_ms") and not percent and size[-1].isdigit() else ""
    return config.out / _SIZES / f"{cost}-{share}{unit}"


def models(config: RunConfig, written: Sequence[Written], *, pruned: Collection[str] = ()) -> tuple[str, ...]:
    """The base and what every architecture comes to; those called in `pruned` as they were pruned, too."""
    paths = [config.model]
    for one in written:
        if one.name in pruned and config.recover is not None:
            paths.append(str(one.pruned))
        paths.append(str(one.last(config)))
    return tuple(paths)
