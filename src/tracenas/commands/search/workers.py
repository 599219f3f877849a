"""Who scores a search's candidates: this process, others of this machine, or actors of a Ray cluster."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tracenas.cluster.joining import Cluster, joined
from tracenas.config import SearchConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.loading import pick_device
from tracenas.pipeline.distributed import actor_memory, actor_pool
from tracenas.pipeline.session import Session
from tracenas.pipeline.workers import require_cpu
from tracenas.reporting.progress import phase
from tracenas.scoring.pooled import PooledScorer, local_pool
from tracenas.scoring.travelling import CandidateScorer
from tracenas.space.architecture import Architecture

__all__ = ["cluster_of", "scored_by"]

_log = logging.getLogger("tracenas")


@contextmanager
def cluster_of(config: SearchConfig) -> Iterator[Cluster | None]:
    """The cluster that the settings ask for.

    Raises:
        UserError: if it cannot be had, or workers of any kind are to score on a GPU.
    """
    if config.ray is None:
        require_cpu(config)
        yield None
        return
    if (device := pick_device(config.device)).type != "cpu":
        raise UserError(f"ray {config.ray}: actors score on a CPU, not on {device}: leave out --ray")
    with ExitStack() as stack:
        with phase("join the cluster"):
            cluster = stack.enter_context(joined(config.ray))
        yield cluster


@contextmanager
def scored_by(
    scorer: CandidateScorer, config: SearchConfig, session: Session, cluster: Cluster | None
) -> Iterator[CandidateScorer | PooledScorer[Architecture]]:
    """The scorer, or the workers that have it."""
    if cluster is None and config.workers == 1:
        yield scorer
        return
    with ExitStack() as stack:
        if cluster is None:
            assert config.workers != "auto"
            with phase("start workers"):
                pool = stack.enter_context(local_pool(scorer, config.workers, session.threads))
            yield PooledScorer(scorer, pool)
            return
        workers = _actors(cluster, config, session)
        with phase("start workers"):
            trusted = config.trust_remote_code
            actors = stack.enter_context(actor_pool(cluster, session, scorer, workers, trust_remote_code=trusted))
        yield PooledScorer(scorer, actors)


def _actors(cluster: Cluster, config: SearchConfig, session: Session) -> int:
    """How many workers the cluster is asked for.

    Raises:
        UserError: if there is no room for one.
    """
    memory = actor_memory(session)
    room = cluster.room(session.threads, memory)
    if room == 0:
        needs = f"{session.threads} cores and {memory / 2**30:.1f} GiB"
        raise UserError(f"ray {cluster.address}: no node has room for a worker, which takes {needs}")
    if config.workers == "auto":
        return room
    if config.workers > room and cluster.started:
        _log.warning("workers %d: this machine has room for %d, so as many", config.workers, room)
        return room
    if config.workers > room:
        _log.warning("workers %d: the cluster has room for %d; the others begin once it has more", config.workers, room)
    return config.workers
