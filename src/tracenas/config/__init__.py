"""Settings of the stages: one frozen model per command; YAML, `key=value` and options all end here."""

from tracenas.config.measuring import BenchConfig, EvalConfig
from tracenas.config.pruning import (
    DemoConfig,
    PlanConfig,
    PruneConfig,
    ReportConfig,
    RunConfig,
    ScoreConfig,
    SearchConfig,
)
from tracenas.config.recovery import RecoverConfig
from tracenas.config.shared import CalibrationConfig, SpaceConfig, StageConfig, build, parse_rank
from tracenas.config.sparsity import MetricSearchConfig, MetricShowConfig, SparsifyConfig

__all__ = [
    "BenchConfig",
    "CalibrationConfig",
    "DemoConfig",
    "EvalConfig",
    "MetricSearchConfig",
    "MetricShowConfig",
    "PlanConfig",
    "PruneConfig",
    "RecoverConfig",
    "ReportConfig",
    "RunConfig",
    "ScoreConfig",
    "SearchConfig",
    "SpaceConfig",
    "SparsifyConfig",
    "StageConfig",
    "build",
    "parse_rank",
]
