"""`tracenas demo`: the main job on the model and text that ship in the package, offline."""

from tracenas.config import DemoConfig, RunConfig
from tracenas.demo import calibration_path, heldout_path, model_path
from tracenas.stages.run import RunOutcome, run

__all__ = ["demo", "demo_settings"]


def demo_settings(config: DemoConfig) -> RunConfig:
    """The run that the demo is."""
    return RunConfig(
        model=str(model_path()),
        data=str(calibration_path()),
        eval_text=str(heldout_path()),
        params=config.params,
        out=config.out,
        samples=16,
        seq_len=256,
        eval_windows=128,
        population=20,
        elites=6,
        iterations=12,
        random_architectures=3,
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        resume=config.resume,
    )


def demo(config: DemoConfig) -> RunOutcome:
    """Search, prune, check and report the demo model."""
    return run(demo_settings(config))
