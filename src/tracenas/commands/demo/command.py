"""`tracenas demo`: the main job on the model and text that ship in the package, offline; or on a published model."""

from importlib.util import find_spec
from pathlib import Path

from tracenas.commands.demo.published import LlmDemo, demo_llm
from tracenas.commands.run.command import run
from tracenas.commands.run.result import RunOutcome
from tracenas.config import DemoConfig, RunConfig
from tracenas.demo import calibration_path, heldout_path, model_path
from tracenas.errors import UserError

__all__ = ["demo", "demo_settings"]


def demo_settings(config: DemoConfig) -> RunConfig:
    """The run that the demo is."""
    return RunConfig(
        model=str(model_path()),
        data=str(calibration_path()),
        text=str(heldout_path()),
        params=config.params or "60%",
        out=config.out or Path("tracenas-demo"),
        samples=16,
        seq_len=256,
        windows=128,
        population=20,
        elites=6,
        iterations=4,
        random_architectures=3,
        seed=config.seed,
        device=config.device,
        dtype=config.dtype,
        threads=config.threads,
        resume=config.resume,
    )


def demo(config: DemoConfig) -> RunOutcome | LlmDemo:
    """Search, prune, check and report the demo model."""
    if config.model == "smollm2":
        if find_spec("gguf") is None:
            raise UserError("the demo's model is a GGUF file, which needs the package gguf: pip install gguf")
        from tracenas.demo.fetch import fetch

        return demo_llm(config, fetch())
    outcome = run(demo_settings(config))
    assert isinstance(outcome, RunOutcome)  # of one size
    return outcome
