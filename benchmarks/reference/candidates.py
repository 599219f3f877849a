"""What a method makes of a budget, as models in memory: kept units, cut or refitted, or a model of another form."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from setting import Clock, Setting
from torch import Tensor

from tracenas.models.surgery.ordering import Key, Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.target import PruningTarget
from tracenas.refits.ridge import FittedRealisation
from tracenas.rundir import atomic_path
from tracenas.space.architecture import Architecture

__all__ = ["FORMS", "Candidate", "KeptUnits", "OwnForm", "Selection"]

FORMS = {"refitted": "refitted as every row", "plain": "cut, not refitted", "own": "as the method itself leaves it"}


class Candidate(Protocol):
    """What a method makes of a budget."""

    @property
    def parameters(self) -> int:
        """That are left, embeddings included."""
        ...

    def realised(self, form: str) -> AbstractContextManager[Any]:
        """The model in one of `FORMS`, until the context ends."""
        ...

    def seconds(self, form: str) -> dict[str, float]:
        """CPU seconds from the dense model to this form, by step."""
        ...

    def close(self) -> None:
        """Leave the loaded model as it was."""
        ...


@dataclass(frozen=True)
class Selection:
    """Which units a method keeps.

    Args:
        own: output projections [rows, kept columns] as the method refits them, columns in the order of the units;
            empty where it does not.
        seconds: of the processor, from the loaded model on; None where a part of them was spent by a run before.
        facts: what the method says of itself.
    """

    ordering: Ordering
    architecture: Architecture
    seconds: float | None
    own: Mapping[Key, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, so that it is not made again."""
        if self.own:
            save_outputs(path.with_name(path.stem + "-own.safetensors"), self.own, self.seconds)
        about = {"architecture": self.architecture.to_json(), "seconds": self.seconds, "facts": dict(self.facts)}
        self.ordering.save(path, {key: json.dumps(value) for key, value in about.items()})

    @classmethod
    def load(cls, path: Path, target: PruningTarget) -> "Selection":
        """Read what `save` wrote.

        Raises:
            UserError: if it is of another model.
        """
        ordering, about = Ordering.load(path, target.blocks)
        given = Architecture.from_json(json.loads(about["architecture"]), where=str(path))
        own = path.with_name(path.stem + "-own.safetensors")
        outputs, facts = load_outputs(own)[0] if own.is_file() else {}, json.loads(about["facts"])
        return cls(ordering, target.space.validate(given), json.loads(about["seconds"]), outputs, facts)


def save_outputs(path: Path, outputs: Mapping[Key, Tensor], seconds: float | None) -> None:
    """Write refitted output projections, and what they have cost."""
    named = {f"{i}.{name}": weight.contiguous() for (i, name), weight in outputs.items()}
    with atomic_path(path) as temporary:
        save_file(named, temporary, {"seconds": json.dumps(seconds)})


def load_outputs(path: Path) -> tuple[dict[Key, Tensor], float | None]:
    """Read what `save_outputs` wrote."""
    with safe_open(str(path), "pt") as file:
        named = ((key.partition("."), file.get_tensor(key)) for key in file.keys())  # noqa: SIM118
        outputs = {(int(index), name): weight for (index, _, name), weight in named}
        return outputs, json.loads((file.metadata() or {}).get("seconds", "null"))


class KeptUnits:
    """A selection in the super-network.

    Args:
        path: where the selection is; its refit is stored beside it.
    """

    def __init__(self, setting: Setting, target: PruningTarget, selection: Selection, path: Path) -> None:
        self.setting, self.target, self.selection = setting, target, selection
        self._refit = path.with_name(path.stem + "-refit.safetensors")
        self._net = Supernet(setting.loaded.model, target.blocks, selection.ordering)
        self._seconds: float | None = None

    @property
    def parameters(self) -> int:
        """That are left, embeddings included."""
        return self.target.space.parameters(self.selection.architecture)

    @contextmanager
    def realised(self, form: str) -> Iterator[Any]:
        """The model cut, refitted as every row, or as the method refits."""
        outputs = {"plain": dict, "own": lambda: self.selection.own, "refitted": self._refitted}[form]()
        with self._net.realise(self.selection.architecture, FittedRealisation(outputs)) as model:
            yield model

    def seconds(self, form: str) -> dict[str, float]:
        """CPU seconds of the selection and of the refit, those that are known."""
        steps = {"select": self.selection.seconds, "refit": self._seconds if form == "refitted" else None}
        return {name: seconds for name, seconds in steps.items() if seconds is not None}

    def close(self) -> None:
        """Put the loaded model's units back into their order."""
        self._net.restore()

    def _refitted(self) -> Mapping[Key, Tensor]:
        if not self._refit.is_file():
            clock = Clock()
            outputs = self.setting.refitted(self._net, self.selection.architecture)
            save_outputs(self._refit, outputs, clock.seconds)
        outputs, self._seconds = load_outputs(self._refit)
        return outputs


@dataclass
class OwnForm:
    """A model that is not a set of kept units of the base.

    Args:
        model: what it became, in memory of its own.
        spent: CPU seconds from the loaded model on.
        facts: what the method says of itself.
    """

    model: Any
    parameters: int
    spent: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    @contextmanager
    def realised(self, form: str) -> Iterator[Any]:
        """The model."""
        if form != "own":
            raise ValueError(f"{form}: this method has its own form alone")
        yield self.model

    def seconds(self, form: str) -> dict[str, float]:
        """CPU seconds of all of it."""
        return {"select": self.spent}

    def close(self) -> None:
        """Nothing was changed."""
