"""The shared LoRA of a study: tuned once for all candidates, kept in the study's directory."""

from dataclasses import replace

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from tracenas.config import StudyConfig
from tracenas.models.checkpoints.source import open_source
from tracenas.models.surgery.shared_lora import SharedLora
from tracenas.models.surgery.supernet import Supernet
from tracenas.pipeline.session import Session
from tracenas.pipeline.target import resolve_target
from tracenas.recovery.once_for_all import tune_once_for_all
from tracenas.recovery.short import ShortSettings
from tracenas.reporting.progress import phase
from tracenas.rundir import atomic_path
from tracenas.space.architecture import Architecture

__all__ = ["shared_lora"]

_FILE = "lora.safetensors"
_STREAM = 0x4C4F5241
_RANDOM = 2
"""Random candidates per step, beside the largest and the smallest."""


def shared_lora(
    config: StudyConfig, session: Session, net: Supernet, batches: list[Tensor], settings: ShortSettings
) -> SharedLora:
    """Adapters tuned on the base, the smallest candidate and two random ones of any size per step (`docs/study.md`)."""
    lora = SharedLora(net, config.lora_rank, alpha=config.lora_alpha, seed=config.seed)
    path = config.out / _FILE
    if path.is_file():
        lora.load(load_file(path))
        return lora
    space = resolve_target(open_source(config.model), config).space
    rng = np.random.default_rng([config.seed, _STREAM])

    def draw() -> list[Architecture]:
        drawn = [space.sample(rng) for _ in range(_RANDOM)]
        return [space.base, space.smallest, *(arch for arch in drawn if arch is not None)]

    tuning = replace(settings, learning_rate=config.lora_learning_rate)
    with phase("once-for-all LoRA", config.lora_steps) as steps:
        tune_once_for_all(net, lora, batches, config.lora_steps, draw, tuning, steps.advance)
    with atomic_path(path) as temporary:
        save_file(lora.state(), temporary)
    return lora
