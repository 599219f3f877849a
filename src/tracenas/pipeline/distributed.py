"""Scoring by actors on any machine: each loads the model from the files that are there, the rest comes from here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tracenas.cluster.actors import ActorPool
from tracenas.cluster.joining import Cluster
from tracenas.errors import UserError
from tracenas.families import Block
from tracenas.models.checkpoints.loading import load
from tracenas.models.surgery.ordering import Ordering
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.sensitivity import model_identity
from tracenas.pipeline.session import Session
from tracenas.scoring.pooled import serving
from tracenas.scoring.travelling import CandidateScorer, Parcel, packed, unpacked
from tracenas.threads import set_threads

__all__ = ["actor_memory", "actor_pool", "build"]

_BESIDE = 1 << 30
"""Bytes that a process needs beside the weights: libraries and activations."""


@dataclass(frozen=True)
class _Blueprint:
    """What an actor is built from.

    Args:
        model: what opens it.
        identity: hash of its tensors, in the order of the super-network.
        scorer: but for the model.
    """

    model: str
    dtype: str
    trust_remote_code: bool
    identity: str
    blocks: tuple[Block, ...]
    ordering: Ordering
    threads: int
    scorer: Parcel


def actor_memory(session: Session) -> int:
    """Bytes that an actor takes."""
    weights: int = sum(p.numel() * p.element_size() for p in session.loaded.model.parameters())
    return weights + _BESIDE


def actor_pool(
    cluster: Cluster, session: Session, scorer: CandidateScorer, workers: int, *, trust_remote_code: bool
) -> ActorPool:
    """Actors that score as `scorer` does.

    Raises:
        UserError: if a node has no such model, another one, or another version of what scores depend on.
    """
    net, loaded = session.supernet(), session.loaded
    blueprint = _Blueprint(
        loaded.source.address,
        loaded.dtype_name,
        trust_remote_code,
        model_identity(loaded)["model"],
        net.blocks,
        net.ordering,
        session.threads,
        packed(scorer),
    )
    memory = actor_memory(session)
    return ActorPool(cluster, f"{__name__}:build", blueprint, workers, cores=session.threads, memory=memory)


def build(blueprint: _Blueprint) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What an actor answers to a task.

    Raises:
        UserError: if the model cannot be loaded, or is another one than the driver's.
    """
    set_threads(blueprint.threads)
    loaded = load(blueprint.model, device="cpu", dtype=blueprint.dtype, trust_remote_code=blueprint.trust_remote_code)
    net = Supernet(loaded.model, blueprint.blocks, blueprint.ordering)
    if model_identity(loaded)["model"] != blueprint.identity:
        raise UserError(f"model {blueprint.model}: its files hold other weights than where the search runs")
    return serving(unpacked(blueprint.scorer, net))
