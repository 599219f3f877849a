"""Settings of search, score and prune."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from tracenas.config import fields
from tracenas.config.accepted import Accepts
from tracenas.config.effort import SIZES, EffortConfig
from tracenas.config.front import FrontConfig
from tracenas.config.one_shot import OneShotSettings
from tracenas.config.shared import CalibrationConfig, TracedConfig
from tracenas.config.tracking import TrackedConfig
from tracenas.config.usage import TRACED, Use, additive, reads_widths, refits
from tracenas.errors import UserError
from tracenas.saliency import PREDICTED_RISES, SALIENCIES
from tracenas.saliency.methods import METHODS
from tracenas.saliency.starts import DEFAULT_STARTS, PUBLISHED_STARTS, SOLVED, STARTS, start_names
from tracenas.strategies import STRATEGIES

__all__ = ["PruneConfig", "ScoreConfig", "SearchConfig"]


def _strategies(config: Any) -> set[str]:
    """What the strategy may be; two of them while the proxy is not decided."""
    if config.strategy != "auto":
        return {config.strategy}
    by_proxy = {"phi": {"evolution"}, "auto": {"evolution", "guided"}}
    return by_proxy.get(config.proxy, {"guided"})


def _evolves(config: Any) -> bool:
    return bool(_strategies(config) & {"evolution", "guided"})


class SearchConfig(EffortConfig, FrontConfig, CalibrationConfig, TracedConfig, TrackedConfig):
    """Find an architecture."""

    needed: ClassVar[tuple[str, ...]] = ("params", "budget")
    wanted: ClassVar[tuple[str, ...]] = ("effort", "minutes", "deploy", "resume")
    holds_out = True
    keeps_latency = True

    uses: ClassVar[tuple[Use, ...]] = (
        TRACED,
        Use(("mutation_width",), "strategy evolution", lambda c: "evolution" in _strategies(c)),
        Use(("crossover", "mutation_depth", "sigma"), "strategy evolution or guided", _evolves),
        Use(("init",), "strategy evolution or guided", lambda c: _evolves(c) or c.init == "nirvana"),
        Use(
            (*SIZES, "race", "start", "include_uniform", "patience"),
            "a strategy that has more than one candidate, not uniform",
            lambda c: c.strategy != "uniform",
        ),
        Use(
            ("prefer",), "a proxy that is a mean over sequences, such as loss_compensated", lambda c: additive(c.proxy)
        ),
        Use(
            ("include_uniform",),
            "another init than uniform, which is that architecture, to be switched off",
            lambda c: c.include_uniform or c.init != "uniform",
        ),
        Use(
            ("include_uniform",),
            "start auto or none: a list names uniform, or does not",
            lambda c: c.start in ("auto", "none"),
        ),
        Use(
            ("sensitivity",),
            "a start, a saliency or a proxy that reads it: fisher",
            lambda c: c.saliency in PREDICTED_RISES or reads_widths(c) or bool(SOLVED & set(c.starts)),
        ),
    )

    model: fields.ModelName
    data: fields.Text = Field(
        description="Calibration text: a text, JSONL, CSV, Parquet or token file, the name of a data set on the hub, "
        "or a mixture a=0.7,b=0.3."
    )
    out: Path = Field(description="Directory of the run, which is made.")
    proxy: fields.Proxy = "auto"
    strategy: Annotated[str, Accepts(("auto",), STRATEGIES.names)] = Field(
        "auto",
        description="How candidates are proposed: evolution (as published), guided (small moves, chosen by the "
        "sensitivity table as the scores so far correct it, or by a regression on them), …; auto: evolution for phi, "
        "guided for every other proxy.",
    )
    start: Annotated[fields.CommaList, Accepts(("auto", "none"), STARTS.names, several=True)] = Field(
        "auto",
        description="Architectures that are scored first: fisher (what the sensitivity table makes of the budget), mlp "
        "(attention untouched), uniform; auto: all of them, as many as the initial population has places for (phi: "
        "uniform).",
    )
    sensitivity: Path | None = Field(
        None,
        description="Table that `tracenas sensitivity` wrote, for start, saliency and proxy fisher; default: it is "
        "measured.",
    )
    saliency: Annotated[str, Accepts(("auto",), SALIENCIES.names)] = Field(
        "auto",
        description="What heads and channels are ranked by; the lowest are removed first. auto: fisher, the order of "
        "the sensitivity table, where the search starts from one and candidates are refitted, else wanda.",
    )
    init: Literal["auto", "start", "importance", "uniform", "random", "nirvana"] = Field(
        "auto",
        description="What the initial population is built around: the first start, the units' importance, …; auto: "
        "importance for evolution, start for guided (uniform where there is none).",
    )
    include_uniform: bool | None = Field(
        None, description="Former name of start uniform: adds it to start auto or none, or takes it out."
    )
    crossover: float = Field(0.7, ge=0, le=1, description="Probability that a child has two parents.")
    mutation_depth: float = Field(0.2, ge=0, le=1, description="Probability that a child loses or regains a block.")
    mutation_width: float = Field(0.2, ge=0, le=1, description="Probability that a child's widths are jittered.")
    sigma: float = Field(0.3, ge=0, description="Standard deviation of the factor that widths are jittered by.")
    patience: int | None = Field(
        None,
        ge=0,
        description="Generations in a row that find nothing better, beyond the noise, after which the search ends; 0: "
        "it never does before its size is reached. Default: 3 for guided with a start, 0 for everything else.",
    )
    prefer: Literal["loss", "stock"] = Field(
        "loss",
        description="What of the best candidates is taken: the lowest loss on held-out text, or with stock one that "
        "transformers builds without remote code, if it is no worse there beyond the noise.",
    )
    race: fields.Switch = Field(
        "auto",
        description="Stop measuring a candidate once it is clearly worse than the elites; auto: where the proxy is a "
        "mean over sequences (loss, kl, and both compensated).",
    )
    workers: fields.Workers = Field(
        1,
        description="Number of processes that score candidates, each with --threads threads (default: the cores shared "
        "out); auto: as many as there are cores for; results do not depend on it. The model is in memory once.",
    )
    ray: fields.Ray | None = Field(
        None,
        description="Ray cluster whose nodes score candidates, --workers actors of --threads threads (default: 1) "
        "each: auto (the one that runs here or that RAY_ADDRESS names, else one of this machine while it is needed), "
        "or HOST:PORT.",
    )
    resume: bool = Field(False, description="Go on with an interrupted run in the directory.")

    @model_validator(mode="after")
    def _check_budgets(self) -> Self:
        if not self.budgets:
            raise UserError(f"'params' is required, or budget: {type(self).model_fields['params'].description}")
        return self

    @property
    def counts_refit_tokens(self) -> bool:
        """It has sequences: their length follows from its effort."""
        return False

    @property
    def longest(self) -> int:
        """Tokens of a window of text where `seq_len` says nothing, if the model has as many positions."""
        return self.size.seq_len

    @property
    def starts(self) -> tuple[str, ...]:
        """Names of the starts.

        Raises:
            UserError: as `start_names`.
        """
        if self.strategy == "uniform":
            return ()
        if self.start not in ("auto", "none"):
            return start_names(self.start)
        anchor = self.init not in ("start", "random")
        of_proxy = PUBLISHED_STARTS if self.proxy == "phi" else DEFAULT_STARTS
        places = self.size.population(self.population) - anchor
        names = of_proxy[:places] if self.start == "auto" else ()
        if self.include_uniform is None:
            return names
        return (*(name for name in names if name != "uniform"), *(("uniform",) if self.include_uniform else ()))


class ScoreConfig(CalibrationConfig, TracedConfig):
    """Score one architecture."""

    wanted = ("proxy", "samples", "seq_len", "device")
    without = ("depth_granularity", "min_depth", "keep_layers", "exclude")
    uses = (TRACED,)

    model: fields.ModelName
    arch: Path = Field(
        description="The architecture: a JSON file, or a run's best.json, whose units are ranked as the run's."
    )
    data: fields.Text = Field(description="Calibration text, as for `tracenas search`, or a run's token file.")
    proxy: fields.Proxies = Field(
        "phi",
        description="What the candidate is scored by, or a weighted sum NAME=WEIGHT,…; auto: what a search takes.",
    )

    @property
    def counts_refit_tokens(self) -> bool:
        """It has sequences, as a search has."""
        return False


def _reads_sensitivity(config: Any) -> bool:
    """Whether units are ranked by what a sensitivity table holds."""
    method = METHODS.get(config.method) if config.method is not None else None
    if method is None:
        return False
    return (config.saliency if "saliency" in config.model_fields_set else method.saliency) in PREDICTED_RISES


class PruneConfig(OneShotSettings):
    """Write the smaller checkpoint: of an architecture, or of what a one-shot method makes of a budget."""

    needed = ("arch", "method", "params", "data")
    wanted = ("compensate",)
    uses = (
        Use(
            ("budget", "tolerance", "depth_granularity", "min_depth", "keep_layers", "exclude"),
            "--method: an architecture has decided them",
            lambda c: c.method is not None,
        ),
        Use(("ridge", "compensate_samples"), "--compensate best, ridge or sequential (auto: as scored)", refits),
        Use(("sensitivity",), "a method whose saliency is fisher", _reads_sensitivity),
        Use(
            ("reconstruct_steps", "reconstruct_rate", "resume"),
            "--reconstruct blocks",
            lambda c: c.reconstruct == "blocks",
        ),
        Use(("scales",), "--compensate best", lambda c: c.compensate == "best"),
        Use(("ridge_scale",), "--compensate best, ridge or sequential", lambda c: c.compensate not in ("auto", "none")),
    )

    arch: Path | None = Field(
        None,
        description="The architecture: a JSON file, or a run's best.json, beside which the run's text and unit order "
        "are; this or --method.",
    )
    data: fields.Text | None = Field(
        None,
        description="Calibration text, as for `tracenas search`; needed with --method, and with an architecture that "
        "is not a run's.",
    )
    out: Path = Field(description="Directory of the checkpoint, which is made.")
    compensate: fields.Compensate = Field(
        "best",
        description="How the output projections are refitted to the dense model's outputs: with its statistics (ridge) "
        "or layer by layer (sequential); best: whichever of these and the plain cut is best on held-out text; auto: as "
        "the architecture was scored.",
    )
    reconstruct: Literal["none", "blocks"] = Field(
        "none",
        description="What is trained after the refit: nothing, or the blocks, one after the other, to give what the "
        "dense ones give; kept where held-out text says so.",
    )
    reconstruct_steps: int = Field(200, ge=1, description="Number of optimizer steps that each block is trained for.")
    reconstruct_rate: float = Field(
        1e-3, gt=0, le=1000, description="Highest learning rate of blocks that are trained."
    )
    resume: bool = Field(False, description="Go on with an interrupted training of blocks, in OUT.reconstruction.")
    scales: Literal["fit", "logits", "none"] = Field(
        "fit",
        description="What is multiplied by a number at the end, fitted on held-out text: every norm, every output "
        "projection and the logits (fit), the logits alone, or nothing; no parameter is added.",
    )
    sensitivity: Path | None = Field(
        None, description="Table that `tracenas sensitivity` wrote, with unit order and costs; default: it is measured."
    )
    ridge_scale: Literal["auto", "mean", "channel"] = Field(
        "auto",
        description="What a refit's ridge is a share of: the mean diagonal of the Gram matrix, or every channel's own "
        "entry; auto: channel for methods fisher and mlp, mean otherwise.",
    )
    shard_size: fields.ShardSize = "5GB"
    save_dtype: fields.SaveDtype = "auto"
    stub_removed_attention: bool = Field(
        False,
        description="Write one head of zeros where attention is removed: the same logits, a few more parameters, and "
        "served by software that needs attention in every block (vLLM without our plugin).",
    )

    @property
    def refit_scale(self) -> Literal["mean", "channel"]:
        """As asked for, or as the method has it."""
        if self.ridge_scale != "auto":
            return self.ridge_scale
        method = METHODS.get(self.method or "")
        return "mean" if method is None else method.ridge_scale
