"""Search strategies over any space, ask and tell; no torch. What is scored and recorded is passed in."""

from tracenas.registry import Registry
from tracenas.strategies.loop import Log, Progress, run_search
from tracenas.strategies.protocol import Batch, StrategyFactory
from tracenas.strategies.result import SearchResult, generations
from tracenas.strategies.score import Score
from tracenas.strategies.settings import Prior, SearchSettings

__all__ = [
    "STRATEGIES",
    "Batch",
    "Log",
    "Prior",
    "Progress",
    "Score",
    "SearchResult",
    "SearchSettings",
    "generations",
    "run_search",
]

STRATEGIES: Registry[StrategyFactory] = Registry(
    "strategy",
    {
        "evolution": "tracenas.strategies.evolution:Evolution",
        "guided": "tracenas.strategies.guided:Guided",
        "random": "tracenas.strategies.random:RandomSearch",
        "uniform": "tracenas.strategies.uniform:Uniform",
    },
)
