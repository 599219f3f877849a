"""Why the hub did not give something, and what would help: one line, with the hub's own reason."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tracenas.errors import UserError, one_line, system_error
from tracenas.formats import data_size
from tracenas.registry import closest

__all__ = ["Kind", "check_room", "reason", "refusal"]

Kind = Literal["model", "dataset"]
_UNREACHABLE = ("ConnectError", "ConnectTimeout", "ReadTimeout", "ProxyError")
"""Exceptions of httpx, of which the hub's client has one version or another."""
_CLOSED = "client has been closed"
"""What version 1.5 of the hub's client says where it asks again after a failed connection."""


def refusal(what: str, repo: str, error: BaseException, *, kind: Kind = "model", revision: str = "") -> UserError:
    """What an exception of the hub's client, or of a library that calls it, means to the user.

    Args:
        what: begins the message: `model org/name@v1`.
        repo: `org/name`.
        revision: that was asked for; '' for what the hub shows first.
    """
    from huggingface_hub import constants, errors

    chain = list(_chain(error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    unreachable = any(
        type(one).__name__ in _UNREACHABLE or isinstance(one, ConnectionError) or _CLOSED in str(one) for one in chain
    )

    offline = constants.HF_HUB_OFFLINE and is_any(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    if any(system_error(one) in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return _no_room(what, None)
    why = reason(error)
    if is_any(errors.GatedRepoError) or "is a gated dataset" in str(error):
        message = f"gated: accept the licence at {_page(repo, kind)}, then `hf auth login`"
    elif is_any(errors.RevisionNotFoundError):
        message = f"no revision '{revision}'{_revisions(repo, kind, revision)}"
    elif is_any(errors.RepositoryNotFoundError) or "doesn't exist on the Hub" in str(error):
        message = f"not on the hub, or private (then `hf auth login`){_similar(repo, kind)}"
    elif unreachable or offline:
        state = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
        message, why = f"{state}, and {_cached(repo, kind, revision)}", "" if offline else why
    elif missing := next((one for one in chain if isinstance(one, errors.RemoteEntryNotFoundError)), None):
        message = f"the hub has no file {str(missing.response.url).rpartition('/')[2]} in it"
    elif any(isinstance(one, errors.HfHubHTTPError) and one.response.status_code == 401 for one in chain):
        message = "the hub does not know your token (any more): `hf auth login`"
    else:
        message = "the hub did not give it"
    return UserError(f"{what}: {message}" + (f" ({why})" if why else ""))


def check_room(what: str, needed: int) -> None:
    """Refuse a download that the disk of the hub's cache has no room for.

    Args:
        needed: bytes.

    Raises:
        UserError: with what is needed and what is free.
    """
    if needed > shutil.disk_usage(_existing(_cache())).free:
        raise _no_room(what, needed)


def _no_room(what: str, needed: int | None) -> UserError:
    place = _cache()
    free = data_size(shutil.disk_usage(_existing(place)).free)
    room = "" if needed is None else f"{data_size(needed)} are to be downloaded, "
    return UserError(f"{what}: no room in {place}: {room}{free} are free; make room, or set HF_HOME to another disk")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def _page(repo: str, kind: Kind) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that it came of."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def reason(error: BaseException) -> str:
    """The server's own words; without them those of the exception that an exception was raised from."""
    if said := next((text for one in _chain(error) if (text := getattr(one, "server_message", None))), None):
        return str(said)
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(error)


def _similar(repo: str, kind: Kind) -> str:
    """`: did you mean …?` by the hub's own search, as far as it answers."""
    from huggingface_hub import HfApi

    found: list[str] = []
    owner, _, name = repo.rpartition("/")
    with suppress(Exception):
        listing: Any = HfApi().list_models if kind == "model" else HfApi().list_datasets
        for where in ({"search": name}, {"author": owner}):
            found += [one.id for one in listing(**where, limit=100) if one.id != repo]
    near = closest(repo, found, 0.8)
    return f"; did you mean '{near}'?" if near else ""


def _revisions(repo: str, kind: Kind, revision: str) -> str:
    """`: did you mean …? accepted: …`, as far as the hub tells its branches and tags."""
    from huggingface_hub import HfApi

    names: list[str] = []
    with suppress(Exception):
        refs = HfApi().list_repo_refs(repo, repo_type=kind)
        names = [ref.name for ref in (*refs.branches, *refs.tags)]
    near = closest(revision, names)
    hint = f" did you mean '{near}'?" if near else ""
    shown = f" accepted: {', '.join(names[:8])}{' …' * (len(names) > 8)}, or a commit" if names else ""
    return f":{hint}{shown}" if hint or shown else ""


def _cached(repo: str, kind: Kind, revision: str) -> str:
    """What the hub's cache has of it; if nothing, how it gets there."""
    place = _cache()
    folder = place / f"{kind}s--{repo.replace('/', '--')}"
    refs = {path.read_text(): path for path in sorted((folder / "refs").rglob("*")) if path.is_file()}
    held = [f"{path.relative_to(folder / 'refs')} ({commit[:7]})" for commit, path in refs.items()]
    held += [path.name for path in sorted(folder.glob("snapshots/*")) if path.name not in refs]
    option = " --repo-type dataset" if kind == "dataset" else f" --revision {revision}" if revision else ""
    fetch = f"where there is a network: `hf download {repo}{option}`"
    if held:
        return f"the cache in {place} has only a part of it, or another revision: {', '.join(held)}; fetch it {fetch}"
    return f"nothing of it is in the cache ({place}); fetch it {fetch}"
