"""Where a model is and what its config.json says, before torch is imported."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tracenas.errors import UserError, first_line
from tracenas.families import Block, Family, Options, config_family
from tracenas.hub.commits import HubName, commits, hub_name, remember
from tracenas.hub.failures import refusal
from tracenas.models.checkpoints.directory import (
    ADAPTER,
    BESIDE,
    check_directory,
    holds_weights,
    quantisation,
    refuse_adapter,
)
from tracenas.models.checkpoints.fp8 import Fp8Checkpoint, is_fp8, read_fp8
from tracenas.models.checkpoints.gguf import GgufFile, read_gguf
from tracenas.models.checkpoints.headers import FLOATS, StoredTensor, equal_tensors, stored_tensors
from tracenas.rundir import read_json
from tracenas.space.constraints import Budget
from tracenas.space.search_space import SearchSpace

__all__ = ["ModelSource", "as_stored_config", "open_source"]

_MOST_UNITS, _MOST_PARAMETERS = 1 << 27, 1 << 50
"""Heads and channels of all blocks, and parameters: many times those of the largest mixtures of experts."""


@dataclass(frozen=True)
class ModelSource:
    """A model directory or hub id with its configuration and family.

    Args:
        name: as the user gave it.
        path: the local directory; of a quantised model, where `load` converts it to; of a model on the hub, its
            snapshot in the hub's cache, into which `load` fetches the rest.
        packed: the quantised model, if that is what the user named; `config` then is that of the converted one.
        commit: of a model on the hub, the commit that its revision stood for when it was opened.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    family: Family
    packed: GgufFile | Fp8Checkpoint | None = None
    commit: str = ""

    @property
    def repo(self) -> str:
        """`organisation/name` of a model on the hub, '' of any other."""
        named = hub_name(self.name) if self.commit else None
        return named.repo if named else ""

    @property
    def address(self) -> str:
        """What opens the same model again, and nothing else: `repo@commit` of a model on the hub, else its name."""
        return f"{self.repo}@{self.commit}" if self.commit else self.name

    @property
    def origin(self) -> str | None:
        """Where the weights come from, if that needs to be said: those of a quantised model are dequantised."""
        return self.packed.origin if self.packed is not None else None

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
        """Longest sequence the model was made for; of an encoder–decoder model what both of its sides hold together."""
        return int(self.config.get("max_position_embeddings") or 2048)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether its blocks stand in two stacks."""
        return bool(self.family.stacks)

    def require_decoder(self, what: str) -> None:
        """Refuse an encoder–decoder model where only decoder-only ones can be dealt with.

        Raises:
            UserError: naming the model and `what` was to be done with it.
        """
        if self.is_encoder_decoder:
            family = self.family.model_type
            raise UserError(
                f"model {self.name}: {what} takes decoder-only models; '{family}' is an encoder–decoder, which "
                "plan, search, score, prune and eval --text take"
            )


def open_source(name: str, *, decoder_only: str = "") -> ModelSource:
    """Read a model's config.json from a directory or the hub, or the header of a GGUF file.

    Args:
        name: a path, or `organisation/name` or `organisation/name@revision` on the hub: a branch, tag or commit.
        decoder_only: what the model is wanted for, if encoder–decoder models cannot be dealt with there.

    Raises:
        UserError: if there is no such model, its family is not supported, or it is an encoder–decoder's.
    """
    try:
        source = _open(name)
    except OSError as error:
        raise UserError(f"model {name[:200]}: {error.strerror or error}") from error
    if decoder_only:
        source.require_decoder(decoder_only)
    return source


def _open(name: str) -> ModelSource:
    path = Path(name)
    if path.is_dir():
        check_directory(name, path)
        config = read_json(path / "config.json")
        if isinstance(config, dict) and is_fp8(config) and holds_weights(path):
            checkpoint = read_fp8(name, path, config)
            return _open_packed(name, checkpoint, checkpoint.config)
        local = path
    elif path.is_file() and path.suffix.lower() == ".gguf":
        file = read_gguf(path)
        return _open_packed(name, file, file.config())
    elif path.exists():
        raise UserError(f"model {name}: is a file; expected a Hugging Face directory, a .gguf file or a hub id")
    elif path.suffix.lower() == ".gguf":
        raise UserError(f"model {name}: no such file")
    elif (named := hub_name(name)) is None:
        raise UserError(f"model {name}: no such directory (a hub id has the form 'organisation/name[@revision]')")
    elif named.revision is not None and Path(named.repo).exists():
        raise UserError(f"model {name}: {named.repo} is a directory here; only models on the hub have revisions")
    else:
        local = _snapshot(name, named)
        config = read_json(local / "config.json")
        if named.revision != local.name:
            remember(name, local.name)
    if not isinstance(config, dict):
        raise UserError(f"model {name}: config.json holds no object")
    return _source(name, local, config, commit="" if path.is_dir() else local.name)


def _source(
    name: str,
    path: Path,
    config: Mapping[str, Any],
    packed: GgufFile | Fp8Checkpoint | None = None,
    commit: str = "",
) -> ModelSource:
    """The model with its configuration as its family and its files have it, if that can describe the model."""
    family = config_family(config)
    if (method := quantisation(config)) is not None:
        raise UserError(
            f"model {name}: its weights are quantised ({method}), which cannot be pruned; accepted: the checkpoint it "
            "was quantised from, a local directory of method fp8, or a GGUF file"
        )
    if isinstance(packed, Fp8Checkpoint):
        stored: Mapping[str, StoredTensor] | None = packed.tensors
    else:
        stored = stored_tensors(path) if not commit and holds_weights(path) else None
    try:
        source = ModelSource(name, path, as_stored_config(name, stored, config, family), family, packed, commit)
        described = source.blocks()
        count = family.outside(source.config) + sum(
            s.spec.parameters(s.spec.units) for block in described for s in block.sub_blocks
        )
        if min(source.positions, int(source.config["vocab_size"])) < 1:
            raise ValueError(f"{source.positions} positions, {source.config['vocab_size']} tokens")
    except KeyError as error:
        raise UserError(f"model {name}: config.json has no {error}, which '{family.model_type}' needs") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"model {name}: config.json is none of '{family.model_type}': {first_line(error)}") from error
    if not described:
        raise UserError(f"model {name}: config.json says that it has no blocks")
    _check_size(source, count, stored)
    return source


def _check_size(source: ModelSource, count: int, stored: Mapping[str, StoredTensor] | None) -> None:
    """Refuse a model that describes more than its files hold, or that nothing could be made of.

    Args:
        count: parameters by config.json.
        stored: what the files hold, if they are at hand.
    """
    held = source.packed.parameters if isinstance(source.packed, GgufFile) else None
    if stored is not None:
        if packed := next((t for t in stored.values() if t.is_packed), None):
            raise UserError(
                f"model {source.name}: tensor {packed.name} is of type {packed.dtype}: the weights are quantised; "
                "accepted: the checkpoint they were quantised from, or a GGUF file"
            )
        held = sum(prod(t.shape) for t in stored.values() if t.dtype in FLOATS)
    if held is not None and count > 2 * held:  # of fewer, loading says which tensors are missing
        raise UserError(f"model {source.name}: {count:,} parameters by config.json, {held:,} in its files")
    if count > _MOST_PARAMETERS:
        raise UserError(
            f"model {source.name}: {count:,} parameters by config.json; accepted: up to {_MOST_PARAMETERS:,}"
        )
    if (units := sum(s.spec.units for block in source.blocks() for s in block.sub_blocks)) > _MOST_UNITS:
        raise UserError(f"model {source.name}: {units:,} heads and channels; accepted: up to {_MOST_UNITS:,}")


def as_stored_config(
    name: str, stored: Mapping[str, StoredTensor] | None, config: Mapping[str, Any], family: Family
) -> Mapping[str, Any]:
    """config.json as its family reads it, with `tie_word_embeddings` as transformers finds it in the model's files.

    Where they hold a head and other embeddings, transformers keeps both, whatever config.json says.

    Args:
        name: of the model, for messages.
        stored: what its files hold; None if they are not at hand.

    Raises:
        UserError: if the head is to be a tensor of its own and the files hold none, or an encoder–decoder's head,
            which config.json says how to scale, is another tensor than that says.
    """
    if stored is None:
        return family.normalised(config, None)
    config = family.normalised(config, stored.__contains__)
    head, embeddings = (
        next((stored[n] for n in names if n in stored), None) for names in (family.head_names, family.embedding_names)
    )
    if not family.tied(config):
        if head is None:
            raise UserError(
                f"model {name}: by config.json the head is a tensor of its own, the files hold no "
                f"{family.head_names[0]}; if it is the embeddings, correct tie_word_embeddings"
            )
        return config
    if head is None or embeddings is None or equal_tensors(head, embeddings):
        return config
    if family.stacks:
        raise UserError(
            f"model {name}: by config.json the head is the embeddings, in the files it is another tensor; "
            "correct tie_word_embeddings"
        )
    return {**config, "tie_word_embeddings": False}


def _open_packed(name: str, packed: GgufFile | Fp8Checkpoint, config: Mapping[str, Any]) -> ModelSource:
    """A quantised model; `config` is what it says as long as it has not been converted."""
    from tracenas.models.checkpoints.dequantised import cached_place, is_complete

    place = cached_place(packed)
    if is_complete(place):
        config = read_json(place / "config.json")
    return _source(name, place, config, packed)


def _snapshot(name: str, named: HubName) -> Path:
    """Where the hub's cache keeps the files of the commit that a name stands for: config.json is there, and the card.

    Raises:
        UserError: if the hub does not give them, or it is an adapter's.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    revision = commits().get(name, named.revision)
    try:
        path = Path(hf_hub_download(named.repo, "config.json", revision=revision)).parent
        with suppress(LocalEntryNotFoundError):  # without a network, what the cache has is all there is
            for file in (ADAPTER, *BESIDE):
                if try_to_load_from_cache(named.repo, file, revision=path.name) is None:  # not known to be absent
                    with suppress(RemoteEntryNotFoundError):
                        hf_hub_download(named.repo, file, revision=path.name)
    except Exception as error:  # the hub's client raises many unrelated types
        raise refusal(f"model {name}", named.repo, error, revision=revision or "") from error
    if (path / ADAPTER).is_file():
        refuse_adapter(name)
    return path
