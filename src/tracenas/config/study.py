"""Settings of study and study ablation."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.shared import CalibrationConfig, TracedConfig
from tracenas.config.tracking import TrackedConfig
from tracenas.config.usage import Use, needs
from tracenas.errors import UserError
from tracenas.proxies import PROXIES

__all__ = ["STUDY_STARTS", "STUDY_TARGETS", "AblationConfig", "PoolConfig", "StudyConfig", "names"]

STUDY_TARGETS = ("recovery", "supernet_lora")
STUDY_STARTS = ("plain", "compensated")
"""What recovery may start from, and what may be measured."""


class PoolConfig(CalibrationConfig, TracedConfig):
    """Which architectures are drawn."""

    uses: ClassVar[tuple[Use, ...]] = (Use(("sizes",), "across-sizes", lambda c: c.across_sizes),)

    model: fields.ModelName
    data: fields.Text = Field(
        description="Text, as for `tracenas search`: calibration, refits and recovery use different parts of it."
    )
    out: Path = Field(description="Directory of the study, which is made.")
    params: fields.Size | None = Field(
        None,
        description="Budget of all architectures: a share of the model's parameters such as 60%, or a number; this or "
        "--across-sizes.",
    )
    across_sizes: bool = Field(False, description="Draw architectures of many sizes instead of one budget.")
    sizes: Annotated[str, Accepts(metavar="LOW-HIGH")] = Field(
        "40%-95%", description="Smallest and largest share of the base's parameters, with --across-sizes."
    )
    tolerance: fields.Tolerance = 0.01
    architectures: int = Field(24, ge=1, description="Number of architectures that are drawn.")
    resamples: int = Field(2000, ge=0, description="Number of resamples of the bootstrap intervals.")
    resume: bool = Field(False, description="Go on with an interrupted study in the directory.")

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


class StudyConfig(PoolConfig, TrackedConfig):
    """Do proxies order architectures as their recovered quality does?"""

    needed = ("params", "across_sizes")
    wanted = ("proxies", "targets", "architectures", "steps", "tasks", "resume")
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

    text: fields.Text = Field(description="Held-out text that losses are measured on.")
    workers: fields.Workers = Field(
        1,
        description="Number of processes that measure architectures, each with --threads threads (default: the cores "
        "shared out); auto: as many as there are cores for; results do not depend on it, but for times.",
    )
    ray: fields.Ray | None = Field(
        None, description="Ray cluster whose nodes measure architectures, as for `tracenas search`: auto, or HOST:PORT."
    )
    windows: int = Field(64, ge=1, description="Number of held-out windows at most.")
    proxies: Annotated[fields.CommaList, Accepts(("all",), PROXIES.names, several=True)] = Field(
        "all", description="Proxies to judge."
    )
    combinations: Annotated[str | None, Accepts(metavar="WEIGHTS")] = Field(
        None,
        description="Weighted sums of proxies' ranks to judge, too, such as 'kl=0.5,phi=0.5; loss=0.7,phi=0.3'.",
    )
    targets: Annotated[fields.CommaList, Accepts(STUDY_TARGETS, several=True)] = Field(
        "recovery", description="What proxies are judged by: the loss after recovery, or with a shared LoRA."
    )
    starts: Annotated[fields.CommaList, Accepts(STUDY_STARTS, several=True)] = Field(
        "plain,compensated", description="What recovery starts from: the plain cut, or the refitted one."
    )
    steps: int = Field(50, ge=0, description="Number of recovery steps; 0: the loss is measured right after pruning.")
    long_steps: int | None = Field(
        None, ge=1, description="Number of recovery steps after which the loss is measured once more."
    )
    seeds: int = Field(1, ge=1, description="Number of orders of the training data, over which a target is a mean.")
    target: str | None = Field(
        None, description="Target of the scatter plots and the ranking, such as plain_50; default: the last recovery."
    )
    recover_batch: int = Field(4, ge=1, description="Sequences per recovery step.")
    recover_seq_len: int | None = Field(
        None, ge=2, description="Tokens per training sequence; default: 128, or as many as in calibration if fewer."
    )
    learning_rate: float = Field(
        3e-4, gt=0, le=1000, description="Learning rate of recovery, constant after the warmup."
    )
    lora_rank: int = Field(8, ge=1, description="Rank of the adapters of target supernet_lora.")
    lora_alpha: float = Field(16, gt=0, description="Scale of these adapters, which count alpha / rank.")
    lora_steps: int = Field(200, ge=1, description="Number of steps in which these adapters are tuned, once for all.")
    lora_learning_rate: float = Field(1e-3, gt=0, le=1000, description="Learning rate of these adapters.")
    tasks: Annotated[fields.CommaList | None, Accepts(metavar="TASK", several=True)] = Field(
        None, description="Tasks of lm-eval, such as piqa, whose accuracy is measured after the last recovery, too."
    )
    task_data: Path | None = Field(
        None, description="Folder with TASK/SPLIT.jsonl; default: the tasks' data are downloaded."
    )
    limit: int | None = Field(None, ge=1, description="Number of questions per task at most; default: all.")

    @property
    def compensate(self) -> str:
        """Whether architectures are refitted, in prune's words."""
        return "ridge" if "compensated" in names(self.starts) or _any_needs(self, "compensated") else "none"


class AblationConfig(PoolConfig):
    """How stable is a proxy's ranking when it is computed from less?"""

    needed = ("params", "across_sizes")
    wanted = ("proxy", "study", "sample_counts", "lengths", "ranks", "resume")
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

    proxy: Annotated[str, Accepts(registered=PROXIES.names)] = Field("phi", description="The proxy that is studied.")
    study: Path | None = Field(
        None,
        description="Directory of a finished study of the same model, whose architectures are scored and compared to "
        "its targets.",
    )
    sample_counts: Annotated[fields.CommaList, Accepts(metavar="N", several=True)] = Field(
        "4,8,16,64", description="Numbers of calibration sequences; the highest is the reference."
    )
    lengths: Annotated[fields.CommaList | None, Accepts(metavar="N", several=True)] = Field(
        None, description="Tokens per sequence; the highest is the reference. Default: an eighth to all of --seq-len."
    )
    ranks: Annotated[fields.CommaList, Accepts(("full",), metavar="N", several=True)] = Field(
        "2,8,64,full", description="Ranks of the gradient traces; the highest is the reference."
    )
