"""The files of a model on the hub, fetched into the hub's cache where they are not there yet."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tracenas.errors import UserError
from tracenas.hub.failures import check_room, refusal
from tracenas.models.checkpoints.base_files import TAKEN_OVER
from tracenas.models.checkpoints.directory import BESIDE
from tracenas.models.checkpoints.headers import INDEX_FILE, SINGLE_FILE, indexed_tensors
from tracenas.models.checkpoints.source import ModelSource

__all__ = ["fetch"]


def fetch(source: ModelSource) -> None:
    """Have all that loading reads in `source.path`: configuration, tokenizer, code and safetensors of its commit.

    What is in the cache is not asked for again, so that this works without a network, too.

    Raises:
        UserError: if the hub does not give a file, or the disk has no room.
    """
    if source.commit:
        _fetch(f"model {source.name}", source.repo, source.commit, source.path)


@lru_cache(maxsize=32)
def _fetch(what: str, repo: str, commit: str, path: Path) -> None:
    """Once in a process, whatever loads the model again."""
    _download(what, repo, commit, ["config.json", "*.py", INDEX_FILE, *BESIDE, *TAKEN_OVER])
    weights = {SINGLE_FILE}
    if (path / INDEX_FILE).is_file():
        weights = set(indexed_tensors(path).values())
    if missing := sorted(name for name in weights if not (path / name).is_file()):
        check_room(what, _size(repo, commit, missing))
        _download(what, repo, commit, missing)


def _download(what: str, repo: str, commit: str, patterns: Sequence[str]) -> None:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        snapshot_download(repo, revision=commit, allow_patterns=list(patterns))
        for name in patterns:
            if name.endswith(".safetensors"):  # without a network, the snapshot is what the cache has of it
                hf_hub_download(repo, name, revision=commit)
    except RemoteEntryNotFoundError as error:
        raise UserError(
            f"{what}: {name} is not there; only safetensors is accepted (where the hub's converter has offered them, "
            f"in a pull request: {repo}@refs/pr/NUMBER)"
        ) from error
    except Exception as error:  # the hub's client raises many unrelated types
        raise refusal(what, repo, error, revision=commit) from error


def _size(repo: str, commit: str, names: Sequence[str]) -> int:
    """Bytes of files on the hub; 0 where it does not tell."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or ()
    except Exception:  # the download itself says why
        return 0
    return sum(file.size or 0 for file in files if file.rfilename in names)
