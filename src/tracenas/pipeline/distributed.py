"""Measuring by actors on any machine: each loads the model from the files that are there, the rest comes from here."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

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
from tracenas.threads import set_threads

__all__ = ["actor_pool", "build", "cluster_of"]

_log = logging.getLogger("tracenas")
_BESIDE = 1 << 30
"""Bytes that a process needs beside the weights: libraries and activations."""


@dataclass(frozen=True)
class _Blueprint:
    """What an actor is built from.

    Args:
        model: what opens it.
        identity: hash of its tensors, in the order of the super-network.
        serving: `module:function` that makes what answers tasks.
        thing: what it makes that from, but for the model.
    """

    model: str
    dtype: str
    trust_remote_code: bool
    identity: str
    blocks: tuple[Block, ...]
    ordering: Ordering
    threads: int
    serving: str
    thing: Parcel


@contextmanager
def cluster_of(config: Any) -> Iterator[Cluster | None]:
    """The cluster that a command's settings ask for.

    Raises:
        UserError: if it cannot be had, or workers of any kind are to work on a GPU.
    """
    if config.ray is None:
        require_cpu(config)
        yield None
        return
    if (device := pick_device(config.device)).type != "cpu":
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
    net, loaded = session.supernet(), session.loaded
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    cores, memory = session.threads, weights + _BESIDE
    workers = _asked(cluster, config.workers, cores, memory)
    blueprint = _Blueprint(
        loaded.source.address,
        loaded.dtype_name,
        config.trust_remote_code,
        model_identity(loaded)["model"],
        net.blocks,
        net.ordering,
        cores,
        serving,
        packed(thing, net),
    )
    with ExitStack() as stack:
        with phase("start workers"):
            target = f"{__name__}:build"
            pool = stack.enter_context(ActorPool(cluster, target, blueprint, workers, cores=cores, memory=memory))
        yield pool


def _asked(cluster: Cluster, workers: int | str, cores: int, memory: int) -> int:
    """How many actors the cluster is asked for.

    Raises:
        UserError: if there is no room for one.
    """
    room = cluster.room(cores, memory)
    if room == 0:
        needs = f"{cores} cores and {memory / 2**30:.1f} GiB"
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
    loaded = load(blueprint.model, device="cpu", dtype=blueprint.dtype, trust_remote_code=blueprint.trust_remote_code)
    net = Supernet(loaded.model, blueprint.blocks, blueprint.ordering)
    if model_identity(loaded)["model"] != blueprint.identity:
        raise UserError(f"model {blueprint.model}: its files hold other weights than where the search runs")
    answer: Callable[[Any], Any] = resolve_name(blueprint.serving)(unpacked(blueprint.thing, net))
    return answer
