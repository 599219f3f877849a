"""Search strategies over any space, ask and tell; no torch. What is scored and recorded is passed in."""

from tracenas.registry import Registry
from tracenas.strategies.loop import Log, Progress, run_search
from tracenas.strategies.protocol import Batch, Candidate, Proposal, Space, Strategy, StrategyFactory
from tracenas.strategies.result import Generation, SearchResult, generations
from tracenas.strategies.score import Score
from tracenas.strategies.settings import INITS, Prior, SearchSettings

__all__ = [
    "INITS",
    "STRATEGIES",
    "Batch",
    "Candidate",
    "Generation",
    "Log",
    "Prior",
    "Progress",
    "Proposal",
    "Score",
    "SearchResult",
    "SearchSettings",
    "Space",
    "Strategy",
    "StrategyFactory",
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
