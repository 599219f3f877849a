"""Measuring by actors on any machine, or by processes on a GPU each: they load the model, the rest comes from here."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import Any

import torch

from tracenas.cluster.actors import ActorPool
from tracenas.cluster.joining import Cluster, joined
from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.loading import load, pick_device
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.sensitivity import model_identity
from tracenas.pipeline.session import Session
from tracenas.pipeline.workers import require_cpu
from tracenas.reporting.progress import phase
from tracenas.scoring.travelling import Parcel, packed, unpacked
from tracenas.shared_tensors import require_shared_memory
from tracenas.threads import set_threads
from tracenas.worker_pool import WorkerPool

__all__ = ["actor_pool", "build", "build_on", "cluster_of", "gpu_pool"]

_log = logging.getLogger("tracenas")
_BESIDE = 1 << 30
"""Bytes that a process needs beside the weights: libraries and activations."""


@dataclass(frozen=True)
class _Blueprint:
    """What an actor is built from.

    Args:
        model: what opens it.
        device: that it is loaded to; an actor with a GPU sees no other.
        identity: hash of its tensors, in the order of the super-network.
        serving: `module:function` that makes what answers tasks.
        thing: what it makes that from, but for the model.
    """

    model: str
    device: str
    dtype: str
    trust_remote_code: bool
    identity: str
    blocks: tuple[Block, ...]
    ordering: Ordering
    threads: int
    serving: str
    thing: Parcel


@contextmanager
def cluster_of(config: Any, *, on_gpus: bool = False) -> Iterator[Cluster | None]:
    """The cluster that a command's settings ask for.

    Args:
        on_gpus: whether workers may have a GPU each.

    Raises:
        UserError: if it cannot be had, or workers are to work on a GPU and may not.
    """
    if config.ray is None:
        if not on_gpus:
            require_cpu(config)
        yield None
        return
    if not on_gpus and (device := pick_device(config.device)).type != "cpu":
        raise UserError(f"ray {config.ray}: actors work on a CPU, not on {device}: leave out --ray")
    with ExitStack() as stack:
        with phase("join the cluster"):
            cluster = stack.enter_context(joined(config.ray))
        yield cluster


@contextmanager
def actor_pool(cluster: Cluster, session: Session, thing: Any, serving: str, config: Any) -> Iterator[ActorPool]:
    """Actors, `config.workers` of them, that answer as this process would.

    Args:
        thing: what measures candidates of the session's super-network.
        serving: `module:function` that makes what answers tasks from it.

    Raises:
        UserError: if there is no room for one, or a node has no such model, another one, or another version of what
            numbers depend on.
    """
    loaded = session.loaded
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    gpus = int(loaded.device.type == "cuda")
    each = {"cores": session.threads, "memory": weights + _BESIDE, "gpus": gpus}
    workers = _asked(cluster, config.workers, **each)
    blueprint = _blueprint(session, thing, serving, config)
    with ExitStack() as stack:
        stack.enter_context(_making_room(session))
        with phase("start workers"):
            pool = stack.enter_context(ActorPool(cluster, f"{__name__}:build", blueprint, workers, **each))
        yield pool


@contextmanager
def gpu_pool(session: Session, thing: Any, serving: str, devices: Sequence[str], config: Any) -> Iterator[WorkerPool]:
    """Processes of this machine that answer as this one would, one on each device, with the model to itself.

    Args:
        thing, serving: as `actor_pool`'s.
        devices: `cuda:0`, `cuda:1`, …

    Raises:
        UserError: if the model does not fit a device, or shared memory is too small for what all of them read.
    """
    if session.loaded.streamed:
        raise UserError(
            f"workers {len(devices)}: the blocks wait in host memory (device-memory) and go to one device: --workers 1"
        )
    blueprint = _blueprint(session, thing, serving, config)
    buffers = [_sharable(buffer) for buffer in blueprint.thing.buffers]
    parcel = replace(blueprint.thing, buffers=buffers)
    blueprint = replace(blueprint, thing=parcel)
    require_shared_memory(blueprint, len(devices))
    with (
        _making_room(session),
        WorkerPool(f"{__name__}:build_on", blueprint, len(devices), start="spawn", places=devices) as pool,
    ):
        yield pool


def _sharable(buffer: Any) -> torch.Tensor:
    """Bytes as a tensor; torch takes no array that nobody may write."""
    return torch.from_numpy(buffer if buffer.flags.writeable else buffer.copy())


def _blueprint(session: Session, thing: Any, serving: str, config: Any) -> _Blueprint:
    net, loaded = session.supernet(), session.loaded
    return _Blueprint(
        loaded.source.address,
        loaded.device.type,
        loaded.dtype_name,
        config.trust_remote_code,
        model_identity(loaded)["model"],
        net.blocks,
        net.ordering,
        session.threads,
        serving,
        packed(thing, net),
    )


@contextmanager
def _making_room(session: Session) -> Iterator[None]:
    """The weights of this process are off its GPU, which a worker has, until the context ends."""
    device, model = session.loaded.device, session.loaded.model
    if device.type == "cpu" or session.loaded.streamed:
        yield
        return
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.to(device)


def _asked(cluster: Cluster, workers: int | str, *, cores: int, memory: int, gpus: int) -> int:
    """How many actors the cluster is asked for.

    Raises:
        UserError: if there is no room for one.
    """
    room = cluster.room(cores, memory, gpus)
    if room == 0:
        needs = f"{cores} cores and {memory / 2**30:.1f} GiB" + (" and a GPU" if gpus else "")
        raise UserError(f"ray {cluster.address}: no node has room for a worker, which takes {needs}")
    if not isinstance(workers, int):
        return room
    if workers > room and cluster.started:
        _log.warning("workers %d: this machine has room for %d, so as many", workers, room)
        return room
    if workers > room:
        _log.warning("workers %d: the cluster has room for %d; the others begin once it has more", workers, room)
    return workers


def build(blueprint: _Blueprint) -> Callable[[Any], Any]:
    """What an actor answers to a task.

    Raises:
        UserError: if the model cannot be loaded, or is another one than the driver's.
    """
    set_threads(blueprint.threads)
    remote = blueprint.trust_remote_code
    loaded = load(blueprint.model, device=blueprint.device, dtype=blueprint.dtype, trust_remote_code=remote)
    net = Supernet(loaded.model, blueprint.blocks, blueprint.ordering)
    if model_identity(loaded)["model"] != blueprint.identity:
        raise UserError(f"model {blueprint.model}: its files hold other weights than where the search runs")
    answer: Callable[[Any], Any] = resolve_name(blueprint.serving)(unpacked(blueprint.thing, net))
    return answer


def build_on(placed: tuple[_Blueprint, str]) -> Callable[[Any], Any]:
    """What a process on a device answers to a task; what several read lies in memory that they share.

    Raises:
        UserError: as `build`.
    """
    blueprint, device = placed
    return build(replace(blueprint, device=device))
