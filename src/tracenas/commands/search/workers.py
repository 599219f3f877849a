"""Who scores a search's candidates: this process, others of this machine, or actors of a Ray cluster."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tracenas.cluster.joining import Cluster
from tracenas.config import SearchConfig
from tracenas.pipeline.distributed import actor_pool, gpu_pool
from tracenas.pipeline.scoring import by_blocks
from tracenas.pipeline.session import Session
from tracenas.pipeline.workers import gpus_of, local_workers
from tracenas.reporting.progress import phase
from tracenas.scoring.block_major import BlockMajorScorer
from tracenas.scoring.pooled import BUILD, PooledScorer, local_pool, serving
from tracenas.scoring.travelling import CandidateScorer
from tracenas.space.architecture import Architecture
from tracenas.worker_pool import prepare

__all__ = ["prepare_workers", "scored_by"]


def prepare_workers(config: SearchConfig) -> None:
    """Have what processes of this machine are forked from begin while the statistics are made."""
    if local_workers(config) > 1 and not gpus_of(config.device):
        prepare(BUILD)


_SERVING = f"{serving.__module__}:{serving.__name__}"


@contextmanager
def scored_by(
    scorer: CandidateScorer, config: SearchConfig, session: Session, cluster: Cluster | None
) -> Iterator[CandidateScorer | BlockMajorScorer | PooledScorer[Architecture]]:
    """The scorer, or the workers that have it.

    In this process candidates may go block by block, together; where time ends a search, each by itself.
    """
    if cluster is not None:
        with actor_pool(cluster, session, scorer, _SERVING, config) as actors:
            yield PooledScorer(scorer, actors)
        return
    if config.workers == 1:
        yield by_blocks(session, scorer, at_once=None if config.minutes is None else 1)
        return
    with ExitStack() as stack:
        assert config.workers != "auto"
        with phase("start workers"):
            if gpus := gpus_of(config.device):
                pool = stack.enter_context(gpu_pool(session, scorer, _SERVING, gpus[: config.workers], config))
            else:
                pool = stack.enter_context(local_pool(scorer, config.workers, session.threads))
        yield PooledScorer(scorer, pool)
