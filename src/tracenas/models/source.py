"""Where a model is and what its config.json says, before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.errors import UserError
from tracenas.families import Block, Family, Options, family_of
from tracenas.rundir import read_json
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace

__all__ = ["ModelSource", "open_source"]


@dataclass(frozen=True)
class ModelSource:
    """A model directory or hub id with its configuration and family.

    Args:
        name: as the user gave it.
        path: the local directory, None for a hub id.
    """

    name: str
    path: Path | None
    config: Mapping[str, Any]
    family: Family

    def blocks(self, options: Options | None = None) -> tuple[Block, ...]:
        """The model's blocks, and where their units live."""
        return self.family.blocks(self.config, options or Options())

    def space(
        self,
        options: Options | None = None,
        *,
        budget: Budget | None = None,
        granularity: str = "block",
        min_depth: int = 1,
        keep_layers: tuple[int, ...] = (),
    ) -> SearchSpace:
        """The search space over this model; negative `keep_layers` count from the end."""
        layers = tuple(b.spec for b in self.blocks(options))
        protected = frozenset(i + len(layers) if i < 0 else i for i in keep_layers)
        return SearchSpace(layers, self.family.outside(self.config), budget, granularity, min_depth, protected)

    @property
    def positions(self) -> int:
        """Longest sequence the model was made for."""
        return int(self.config.get("max_position_embeddings") or 2048)


def open_source(name: str) -> ModelSource:
    """Read a model's config.json from a directory or the hub.

    Raises:
        UserError: if there is no such model, or its family is not supported.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name}: the directory holds no config.json")
        config = read_json(path / "config.json")
        local: Path | None = path
    elif path.exists():
        raise UserError(f"model {name}: is a file; expected a Hugging Face directory or a hub id")
    elif name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"model {name}: no such directory (a hub id has the form 'organisation/name')")
    else:
        config, local = _hub_config(name), None
    if not isinstance(config, dict):
        raise UserError(f"model {name}: config.json holds no object")
    return ModelSource(name, local, config, family_of(config))


def _hub_config(name: str) -> Any:
    from huggingface_hub import hf_hub_download

    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except UserError:
        raise
    except Exception as error:  # the hub client raises many unrelated types; each means "not to be had"
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"model {name}: no such directory, and the hub did not give it ({line[:160]})") from error
