"""What the settings of a study ask for: proxies and their combinations, targets, architectures. No torch."""

from dataclasses import dataclass

from tracenas.commands.study.combinations import parse_combinations
from tracenas.commands.study.plan import StudyPlan, chosen_proxies, make_plan
from tracenas.commands.study.pool import Drawn, draw_pool
from tracenas.config import StudyConfig
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.target import PruningTarget
from tracenas.proxies.combination import Choice

__all__ = ["StudyDesign", "make_design"]


@dataclass(frozen=True)
class StudyDesign:
    """What is scored and measured, of which architectures."""

    proxies: tuple[str, ...]
    combinations: tuple[Choice, ...]
    plan: StudyPlan
    target: PruningTarget
    pool: list[Drawn]


def make_design(config: StudyConfig, source: ModelSource) -> StudyDesign:
    """The design of a study.

    Raises:
        UserError: for settings that name nothing, or contradict each other.
    """
    proxies = chosen_proxies(config)
    _ = config.trace_rank  # a rank that is none is refused
    combinations = parse_combinations(config.combinations, proxies)
    return StudyDesign(proxies, combinations, make_plan(config), *draw_pool(source, config))
