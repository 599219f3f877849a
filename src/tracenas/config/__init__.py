"""Settings of the stages: one frozen model per command; YAML, options and `section.key=value` all end here."""

from tracenas.config.best import BestConfig
from tracenas.config.effort import Effort, EffortConfig
from tracenas.config.exporting import ExportConfig
from tracenas.config.latency import MeasureConfig
from tracenas.config.measuring import BenchConfig, EvalConfig
from tracenas.config.one_shot import OneShotSettings, SelectCalibrationConfig
from tracenas.config.plan import PlanConfig
from tracenas.config.pruning import PruneConfig, ScoreConfig, SearchConfig
from tracenas.config.pushing import PushConfig
from tracenas.config.recovery import RecoverConfig
from tracenas.config.run import RunConfig
from tracenas.config.runs import ReportConfig, ResumeConfig, RunsConfig, WatchConfig
from tracenas.config.sensitivity import SensitivityConfig
from tracenas.config.shared import (
    CalibrationConfig,
    SpaceConfig,
    StageConfig,
    build,
    check_used,
    construct,
    current_names,
    parse_rank,
    positional_setting,
    setting_names,
)
from tracenas.config.shipped import DemoConfig, RecipesConfig
from tracenas.config.sparsity import MetricSearchConfig, MetricShowConfig, SparsifyConfig
from tracenas.config.study import AblationConfig, StudyConfig

__all__ = [
    "AblationConfig",
    "BenchConfig",
    "BestConfig",
    "CalibrationConfig",
    "DemoConfig",
    "Effort",
    "EffortConfig",
    "EvalConfig",
    "ExportConfig",
    "MeasureConfig",
    "MetricSearchConfig",
    "MetricShowConfig",
    "OneShotSettings",
    "PlanConfig",
    "PruneConfig",
    "PushConfig",
    "RecipesConfig",
    "RecoverConfig",
    "ReportConfig",
    "ResumeConfig",
    "RunConfig",
    "RunsConfig",
    "ScoreConfig",
    "SearchConfig",
    "SelectCalibrationConfig",
    "SensitivityConfig",
    "SpaceConfig",
    "SparsifyConfig",
    "StageConfig",
    "StudyConfig",
    "WatchConfig",
    "build",
    "check_used",
    "construct",
    "current_names",
    "parse_rank",
    "positional_setting",
    "setting_names",
]
