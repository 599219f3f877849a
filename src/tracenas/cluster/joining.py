"""The Ray cluster that a command's actors run in: one that is there, or one of this machine while it is needed.

What is started here listens on loopback alone, has no dashboard page, reports no usage, and is gone afterwards.
"""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracenas.errors import UserError, one_line
from tracenas.worker_pool import available_cores

__all__ = ["Cluster", "joined", "require_address"]

_SECONDS = 5.0
"""To answer a connection: Ray itself would try for minutes."""
_STARTED = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""What a cluster of ours begins with: no usage statistics, and every port on loopback, as Ray has it on a laptop."""
_JOINED = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "5"}
"""How Ray is to join: giving up after seconds, not minutes."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process has joined.

    Args:
        ray: the package.
        address: as it is called in messages.
        started: whether it was started here.
    """

    ray: Any
    address: str
    started: bool

    def room(self, cores: int, memory: int, gpus: int = 0) -> int:
        """How many actors of so many cores, bytes and GPUs there is room for, were nothing else running."""
        wanted = {"CPU": cores, "memory": memory, **({"GPU": gpus} if gpus else {})}
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(int(min(has.get(name, 0) // each for name, each in wanted.items())) for has in alive)

    def has_node(self, name: str) -> bool:
        """Whether a node is still there."""
        return any(node["Alive"] and node["NodeID"] == name for node in self.ray.nodes())


def require_address(address: str) -> None:
    """Refuse what is no address before anything is imported.

    Raises:
        UserError: as said.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and not (host and "/" not in host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise UserError(f"ray '{address[:100]}': accepted: auto, or the HOST:PORT that a cluster's `ray start` names")


@contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """The cluster at `address`; `auto`: the one that runs on this machine or that RAY_ADDRESS names, else a new one.

    Raises:
        UserError: if Ray is not installed, or the cluster does not answer or refuses.
    """
    require_address(address)
    place = _running() if address == "auto" else address
    if place is not None and not _answers(place):
        raise UserError(f"ray {address}: no cluster answers at {place}: start one there, or take --ray auto")
    if place is not None:
        with _environment({**_JOINED, **_token()}), _connected(address, address=place) as ray:
            yield Cluster(ray, place, started=False)
        return
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory,
        _environment(_STARTED),
        _connected(address, address="local", num_cpus=available_cores(), _temp_dir=directory) as ray,
    ):
        yield Cluster(ray, "of this machine", started=True)


def _token() -> dict[str, str]:
    """Ray proves by its token who it is, where there is one and nothing else is said; of itself it does for `auto`."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    known = "RAY_AUTH_TOKEN" in os.environ or file.is_file()
    return {"RAY_AUTH_MODE": "token"} if known and "RAY_AUTH_MODE" not in os.environ else {}


def _running() -> str | None:
    """The address that RAY_ADDRESS says, or the last `ray start` of this machine if it answers."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    note = Path(os.environ.get("RAY_TMPDIR") or "/tmp") / "ray" / "ray_current_cluster"
    try:
        address = note.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return address if _answers(address) else None


def _answers(address: str) -> bool:
    """Whether something listens at an address."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _connected(asked: str, **settings: Any) -> Iterator[Any]:
    """Ray, connected until the block ends; what a termination signal means stays as it was.

    Raises:
        UserError: if it is not installed or does not connect.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError("--ray needs Ray: pip install ray, or the extra 'ray' of tracenas") from error
    if ray.is_initialized():
        raise UserError(f"ray {asked}: this process is connected to a cluster already: ray.shutdown() first")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    quiet: Mapping[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
    if settings["address"] == "local":
        quiet = {**quiet, "include_dashboard": False}
    try:
        try:
            ray.init(**settings, **quiet)
            # It prints deaths of workers on the standard output, where results go; the pool says them in its own way.
            ray._private.worker.print_to_stdstream = lambda *_, **__: None
        except SystemExit as error:  # what it makes of a termination signal
            raise KeyboardInterrupt from error
        except Exception as error:  # of many types
            raise UserError(f"ray {asked}: {_said(error)}") from error
        finally:
            if main:
                signal.signal(signal.SIGTERM, handler)
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment, for this process and what it starts, until the block ends."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _said(error: BaseException) -> str:
    """What an error says, and its last line, which names the cause."""
    whole = one_line(error)
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return whole if cause is error or not lines else f"{whole}: {lines[-1][:200]}"
