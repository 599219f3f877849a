"""Search strategies over any space, ask and tell; no torch. What is scored and recorded is passed in."""

from tracenas.registry import Registry
from tracenas.search.loop import Log, Progress, run_search
from tracenas.search.protocol import Batch, Candidate, Proposal, Space, Strategy, StrategyFactory
from tracenas.search.result import Generation, SearchResult, generations
from tracenas.search.score import Score
from tracenas.search.settings import INITS, Prior, Settings

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
    "Settings",
    "Space",
    "Strategy",
    "StrategyFactory",
    "generations",
    "run_search",
]

STRATEGIES: Registry[StrategyFactory] = Registry(
    "strategy",
    {
        "evolution": "tracenas.search.evolution:Evolution",
        "guided": "tracenas.search.guided:Guided",
        "random": "tracenas.search.random:RandomSearch",
        "uniform": "tracenas.search.uniform:Uniform",
    },
)
