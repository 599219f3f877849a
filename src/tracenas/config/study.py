"""Settings of study and study ablation."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from tracenas.config import fields
from tracenas.config.shared import CalibrationConfig, TracedConfig
from tracenas.config.usage import Use, needs
from tracenas.errors import UserError

__all__ = ["AblationConfig", "PoolConfig", "StudyConfig", "names"]


class PoolConfig(CalibrationConfig, TracedConfig):
    """Which architectures are drawn."""

    uses: ClassVar[tuple[Use, ...]] = (Use(("sizes",), "across-sizes", lambda c: c.across_sizes),)

    model: fields.ModelName
    data: str = Field(description="Text or tokens: calibration, compensation and recovery use different parts of it.")
    out: Path = Field(description="Directory of the study.")
    params: str | None = Field(None, description="One budget for all architectures: a share such as 60%, or a size.")
    across_sizes: bool = Field(False, description="Architectures of many sizes instead of one budget.")
    sizes: str = Field("40%-95%", description="across-sizes: the smallest and the largest share of the base.")
    tolerance: fields.Tolerance = 0.01
    architectures: int = Field(24, ge=1, description="K, how many are drawn.")
    resamples: int = Field(2000, ge=0, description="Of the bootstrap intervals.")
    resume: bool = Field(False, description="Go on with an interrupted study.")

    @property
    def shares(self) -> tuple[float, float]:
        """`sizes` as percentages.

        Raises:
            UserError: unless they are two shares in ascending order.
        """
        parts = [part.strip() for part in self.sizes.split("-")]
        try:
            low, high = (float(part.removesuffix("%")) for part in parts)
        except ValueError as error:
            raise UserError(f"sizes '{self.sizes}': expected two shares such as 40%-95%") from error
        if not all(part.endswith("%") for part in parts) or not 0 < low < high <= 100:
            raise UserError(f"sizes '{self.sizes}': expected two ascending shares up to 100%, such as 40%-95%")
        return low, high


def names(text: str) -> tuple[str, ...]:
    """A list separated by commas, each name once."""
    return tuple(dict.fromkeys(part for part in text.replace(" ", "").split(",") if part))


def _any_needs(config: Any, need: str) -> bool:
    return config.proxies == "all" or any(needs(name, need) for name in names(config.proxies))


class StudyConfig(PoolConfig):
    """Do proxies order architectures as their recovered quality does?"""

    uses = (
        Use(("rank",), "proxies of gradient traces, such as phi", lambda c: _any_needs(c, "trace")),
        Use(
            ("steps", "long_steps", "seeds", "learning_rate", "tasks"),
            "targets recovery",
            lambda c: c.steps == 0 or "recovery" in names(c.targets),
        ),
        Use(
            ("recover_batch", "recover_seq_len"),
            "steps or targets supernet_lora",
            lambda c: c.steps > 0 or "supernet_lora" in names(c.targets),
        ),
        Use(("seeds", "learning_rate"), "steps", lambda c: c.steps > 0),
        Use(
            ("lora_rank", "lora_alpha", "lora_steps", "lora_learning_rate"),
            "targets supernet_lora",
            lambda c: "supernet_lora" in names(c.targets),
        ),
        Use(("task_data", "limit"), "tasks", lambda c: c.tasks is not None),
    )

    eval_text: str = Field(description="Held-out text that losses are measured on.")
    eval_windows: int = Field(64, ge=1, description="Use no more than this many held-out windows.")
    proxies: fields.CommaList = Field("all", description="Proxies to judge, separated by commas, or all.")
    combinations: str | None = Field(
        None, description="Also weighted sums of these proxies' ranks, such as 'kl=0.5,phi=0.5; loss=0.7,phi=0.3'."
    )
    targets: fields.CommaList = Field("recovery", description="recovery, supernet_lora, or both, separated by commas.")
    starts: fields.CommaList = Field(
        "plain,compensated", description="What recovery starts from: plain, compensated, or both."
    )
    steps: int = Field(50, ge=0, description="R, recovery steps; 0: only right after pruning.")
    long_steps: int | None = Field(None, ge=1, description="Go on to this many steps and measure again.")
    seeds: int = Field(1, ge=1, description="Orders of the training data; a target is their mean.")
    target: str | None = Field(None, description="Of the scatter plots and the ranking; default: the last recovery.")
    recover_batch: int = Field(4, ge=1, description="Sequences per recovery step.")
    recover_seq_len: int | None = Field(
        None, ge=2, description="Tokens per training sequence; default min(128, the calibration's); of tokens theirs."
    )
    learning_rate: float = Field(3e-4, gt=0, description="Of recovery, constant after the warmup.")
    lora_rank: int = Field(8, ge=1, description="supernet_lora: r.")
    lora_alpha: float = Field(16, gt=0, description="supernet_lora: adapters are scaled by alpha / r.")
    lora_steps: int = Field(200, ge=1, description="supernet_lora: steps of the once-for-all tuning.")
    lora_learning_rate: float = Field(1e-3, gt=0, description="supernet_lora: learning rate.")
    tasks: fields.CommaList | None = Field(
        None, description="Also accuracy on these tasks of lm-eval after the last recovery."
    )
    task_data: Path | None = Field(None, description="Folder with TASK/SPLIT.jsonl, instead of fetching tasks' data.")
    limit: int | None = Field(None, ge=1, description="Questions per task.")

    @property
    def compensate(self) -> str:
        """Whether architectures are refitted, in prune's words."""
        return "ridge" if "compensated" in names(self.starts) or _any_needs(self, "compensated") else "none"


class AblationConfig(PoolConfig):
    """How stable is a proxy's ranking when it is computed from less?"""

    uses = (
        Use(("rank", "ranks"), "a proxy of gradient traces, such as phi", lambda c: needs(c.proxy, "trace")),
        Use(
            (
                "architectures",
                "sizes",
                "tolerance",
                "saliency",
                "depth_granularity",
                "min_depth",
                "keep_layers",
                "exclude",
            ),
            "new architectures: the study has decided them",
            lambda c: c.study is None,
        ),
    )

    proxy: str = Field("phi", description="The proxy.")
    study: Path | None = Field(
        None, description="Finished study of the same model: its architectures are scored, and compared to its targets."
    )
    sample_counts: fields.CommaList = Field(
        "4,8,16,64", description="Numbers of sequences N; the highest is the reference."
    )
    lengths: fields.CommaList | None = Field(
        None, description="Context lengths; the highest is the reference. Default: an eighth to the whole of seq-len."
    )
    ranks: fields.CommaList = Field("2,8,64,full", description="Ranks r; the highest is the reference.")
