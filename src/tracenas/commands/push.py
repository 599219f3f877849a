"""`tracenas push`: a checkpoint that was checked, put on the hub; nothing there is ever removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tracenas.config import PushConfig
from tracenas.errors import UserError
from tracenas.formats import data_size, plural
from tracenas.hub.commits import hub_name
from tracenas.hub.failures import reason
from tracenas.models.checkpoints.readme import readme_text
from tracenas.models.checkpoints.serving import with_serving
from tracenas.pipeline.serving import serving
from tracenas.reporting.terminal import Outcome, Table, to_plain
from tracenas.rundir import read_json

__all__ = ["Pushed", "push"]


@dataclass(frozen=True)
class Pushed(Outcome):
    """What was put where.

    Args:
        files: as they are called on the hub.
        size: their bytes.
        left_out: what else lies in the directory.
        commit: that they are in; '' of a dry run.
        url: of the commit; '' of a dry run.
    """

    repo: str
    revision: str
    files: tuple[str, ...]
    size: int
    left_out: tuple[str, ...]
    commit: str = ""
    url: str = ""

    def to_json(self) -> Any:
        """For `--json`."""
        return to_plain({**vars(self), "pushed": bool(self.commit)})

    def tables(self) -> list[Table]:
        """A summary."""
        rows = [
            ("repository", f"{self.repo}, branch {self.revision}"),
            ("files", f"{plural(len(self.files), 'file')}, {data_size(self.size)}: {', '.join(self.files)}"),
            ("left out", ", ".join(self.left_out) or "nothing"),
            *([("commit", f"{self.repo}@{self.commit}"), ("page", self.url)] if self.commit else []),
        ]
        return [Table("pushed" if self.commit else "would be pushed (dry run)", ("", "value"), rows)]


def push(config: PushConfig) -> Pushed:
    """Check a checkpoint and put its own files on the hub, the card under the name that it has there.

    Raises:
        UserError: if the checkpoint is not whole, names local paths, or the hub does not take it.
    """
    directory, named = config.directory, hub_name(config.repo)
    if named is None or named.revision is not None:
        raise UserError(f"repo {config.repo}: expected ORGANISATION/NAME (a branch goes with --revision)")
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; push takes a checkpoint on this machine")
    from tracenas.models.checkpoints.publishing import check_loads, check_names, published_files

    files = published_files(directory)
    check_names(files)
    source = check_loads(directory).source
    section = serving(config.repo, source.family, read_json(directory / "config.json"))
    names = [path.relative_to(directory).as_posix() for path in files]
    result = Pushed(
        config.repo,
        config.revision or "main",
        tuple(names),
        sum(path.stat().st_size for path in files),
        tuple(sorted(p.name for p in directory.iterdir() if not any(n.split("/")[0] == p.name for n in names))),
    )
    if config.dry_run:
        return result
    contents: dict[str, Path | bytes] = dict(zip(names, files, strict=True))
    contents["README.md"] = with_serving(readme_text(directory), section).encode()
    return Pushed(**{**vars(result), **_upload(config, result.revision, contents)})


def _upload(config: PushConfig, branch: str, contents: dict[str, Path | bytes]) -> dict[str, str]:
    """`commit` and `url` of the new commit."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, what = HfApi(library_name="tracenas", library_version=version("tracenas")), f"push to {config.repo}"
    operations = [CommitOperationAdd(name, content) for name, content in contents.items()]
    try:
        _prepare(api, config, branch, tuple(contents))
        info = api.create_commit(
            config.repo, operations, commit_message=f"Pushed by tracenas {version('tracenas')}", revision=branch
        )
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many unrelated types
        refused = isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403)
        said = "not allowed; `hf auth login` with a token that may write" if refused else "the hub did not take it"
        raise UserError(f"{what}: {said} ({reason(error)})") from error
    return {"commit": info.oid, "url": info.commit_url}


def _prepare(api: Any, config: PushConfig, branch: str, names: Sequence[str]) -> None:
    """Have repository and branch there; refuse ones that hold weights beside which ours would not be the model.

    Raises:
        UserError: also if the repository is public and was to be private.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        private = api.model_info(config.repo).private
    except RepositoryNotFoundError:
        private = config.private
        api.create_repo(config.repo, private=private)
    if config.private and not private:
        raise UserError(
            f"push to {config.repo}: it is there, and public; leave --private out, or make it private there"
        )
    there = any(ref.name == branch for ref in api.list_repo_refs(config.repo).branches)
    others = [
        name for name in api.list_repo_files(config.repo, revision=branch if there else None) if name not in names
    ]
    if weights := [name for name in others if name.endswith((".safetensors", ".safetensors.index.json"))]:
        raise UserError(
            f"push to {config.repo}: {weights[0]} on {branch if there else 'main'} would stay beside this checkpoint's "
            "weights (push removes nothing); choose another repository or --revision"
        )
    if not there:
        api.create_branch(config.repo, branch=branch, exist_ok=True)
