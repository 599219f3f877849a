"""What search, score and prune share: model, calibration tokens, unit order, importance and super-network."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracenas.config import CalibrationConfig, SpaceConfig
from tracenas.errors import UserError
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.calibrated import Calibrated
from tracenas.pipeline.calibration import calibration_tokens, window_start
from tracenas.pipeline.deployment import check_deploy, options_of
from tracenas.pipeline.refit.text import reserve_held_out, text_of
from tracenas.scoring.workload import default_micro_batch
from tracenas.space.constraints import Budget, parse_size
from tracenas.space.search_space import SearchSpace
from tracenas.strategies import Prior

if TYPE_CHECKING:
    import torch

    from tracenas.data.windows import WindowStart
    from tracenas.models.checkpoints.loading import LoadedModel
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.models.surgery.supernet import Supernet
    from tracenas.scoring.combined import CombinedEvaluator
    from tracenas.scoring.evaluator import Evaluator
    from tracenas.scoring.panel import Panel

__all__ = [
    "CALIBRATION",
    "ORDERING",
    "Session",
    "open_session",
    "options_of",
    "set_threads",
    "space_of",
]

CALIBRATION = "calibration.safetensors"
ORDERING = "ordering.safetensors"


def space_of(source: ModelSource, config: SpaceConfig, *, params: str | None, tolerance: float = 0.01) -> SearchSpace:
    """The search space under the budget, refused here if it is infeasible (no torch is needed).

    Raises:
        UserError: for a budget or settings that the model cannot meet.
    """
    deploy = check_deploy(source, config)
    blocks = source.blocks(options_of(config))
    depth = len(blocks)
    kwargs: dict[str, Any] = {
        "granularity": config.depth_granularity,
        "min_depth": config.min_depth if config.min_depth is not None else max(1, depth // 2),
        "keep_layers": config.protected,
    }
    free = replace(source.space(options_of(config), **kwargs), keeps=deploy.keeps)
    if params is None:
        return free
    limit = parse_size(params, free.parameters(free.base))
    space = replace(free, budget=Budget(limit, tolerance))
    space.check_budget()
    return space


def set_threads(threads: int | None) -> int:
    """Fix torch's CPU threads for this process; returns how many there are."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


@dataclass
class Session(Calibrated):
    """A loaded model, ready to be cut.

    Args:
        importance: I_l per (block, sub-block) (TraceNAS A.1).
        micro_batch: sequences per forward pass.
        net: the super-network once it is made.
    """

    space: SearchSpace
    ordering: "Ordering"
    importance: Mapping[tuple[int, str], float]
    micro_batch: int
    threads: int
    net: "Supernet | None" = None

    def machine(self) -> dict[str, Any]:
        """What `auto` and defaults came to here: device, dtype, threads, micro-batch and whether there is a BOS."""
        return {
            "device": str(self.loaded.device),
            "dtype": self.loaded.dtype_name,
            "threads": self.threads,
            "micro_batch": self.micro_batch,
            "bos": self.start.rule,
        }

    @property
    def dtype(self) -> str:
        """Of the weights, as torch calls it: `float32`."""
        return str(self.loaded.dtype).removeprefix("torch.")

    def supernet(self) -> "Supernet":
        """The super-network, the same one until it is restored; the model's weights are permuted in place, once."""
        from tracenas.models.surgery.supernet import Supernet

        if self.net is None or self.net.restored:
            self.net = Supernet(self.loaded.model, self.loaded.blocks(options_of(self.config)), self.ordering)
        return self.net

    def evaluator(
        self, proxy: str, rank: str, net: "Supernet | None" = None, reference: Path | None = None
    ) -> "Evaluator | CombinedEvaluator":
        """Scores candidates of this session by a proxy, or by a weighted sum of rank-normalised ones.

        Args:
            reference: file of the pool that ranks are taken in; the run's own by default.
        """
        from tracenas.pipeline.scoring import evaluator_of

        return evaluator_of(self, proxy, rank, net, reference)

    def panel(self, names: Sequence[str], rank: str, net: "Supernet | None" = None) -> "Panel":
        """Scores candidates of this session by several proxies at once."""
        from tracenas.pipeline.scoring import panel_of

        return panel_of(self, names, rank, net)

    def prior(self) -> Prior:
        """Layer importance as a width profile: I_l over its mean within attention and within MLP (decision 9)."""
        names = {name for _, name in self.importance}
        means = {n: _mean([v for (_, m), v in self.importance.items() if m == n]) for n in names}
        ratios = [
            [
                self.importance[i, s.name] / means[s.name] if s.units and means[s.name] > 0 else 0.0
                for s in layer.sub_blocks
            ]
            for i, layer in enumerate(self.space.layers)
        ]
        order = sorted(range(len(ratios)), key=lambda i: (_mean(ratios[i]), i))
        return Prior(ratios, order)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def open_session(
    source: ModelSource,
    space: SearchSpace,
    config: CalibrationConfig,
    *,
    data: str | None,
    run: Path | None = None,
    hold_out: bool = False,
) -> Session:
    """Load the model and its calibration; read `run`'s tokens and unit order where they are there, else make them.

    Args:
        data: where calibration text comes from; None if `run` holds the tokens.
        run: run directory to read `calibration.safetensors` and `ordering.safetensors` from, and to write to.
        hold_out: store text there that refits can be compared on.
    """
    from tracenas.models.checkpoints.loading import load

    threads = set_threads(config.threads)
    if data is None and (run is None or not (run / CALIBRATION).is_file()):
        raise UserError("'data' is required: calibration text or tokens (the architecture is not a run's best.json)")
    loaded = load(source, device=config.device, dtype=config.dtype, trust_remote_code=config.trust_remote_code)
    tokens, start = _tokens(loaded, config, data, run)
    micro_batch = config.micro_batch or default_micro_batch(
        loaded.blocks(options_of(config)),
        space.base,
        int(source.config["hidden_size"]),
        tokens.shape[1],
        loaded.dtype.itemsize,
        loaded.device.type,
    )
    calibrated = Calibrated(config, loaded, tokens, start, data, run)
    if hold_out:
        reserve_held_out(calibrated)
    ordering, importance = _ordering(calibrated, micro_batch)
    return Session(config, loaded, tokens, start, data, run, space, ordering, importance, micro_batch, threads)


def _tokens(
    loaded: "LoadedModel", config: CalibrationConfig, data: str | None, run: Path | None
) -> "tuple[torch.Tensor, WindowStart]":
    from tracenas.data.tokens import load_tokens, save_tokens
    from tracenas.data.windows import token_file_start

    if run is not None and (run / CALIBRATION).is_file():
        return load_tokens(run / CALIBRATION), token_file_start(run / CALIBRATION)
    assert data is not None
    tokens = calibration_tokens(
        loaded,
        data,
        samples=config.samples,
        seq_len=config.seq_len,
        seed=config.seed,
        text_field=config.text_field,
        bos=config.bos,
    )
    start = window_start(loaded, data, config.bos)
    if run is not None:
        save_tokens(run / CALIBRATION, tokens, {"source": data, "model": loaded.source.name, **start.note})
    return tokens, start


def _ordering(own: Calibrated, micro_batch: int) -> tuple["Ordering", dict[tuple[int, str], float]]:
    """The run's, where it has one. What ranks units for a refit is measured on the text that is refitted on."""
    from tracenas.models.functionals.memory import within_memory
    from tracenas.models.surgery.ordering import Ordering
    from tracenas.saliency import FOR_REFITS, SALIENCIES

    config, loaded = own.config, own.loaded
    path = None if own.run is None else own.run / ORDERING
    blocks = loaded.blocks(options_of(config))
    if path is not None and path.is_file():
        ordering, metadata = Ordering.load(path, blocks)
        raw = json.loads(metadata.get("importance", "{}"))
        importance = {(int(k.split(".")[0]), k.split(".")[1]): float(v) for k, v in raw.items()}
        return ordering, importance
    saliency = SALIENCIES.get(config.saliency)
    tokens = text_of(own, keep=True).tokens if config.saliency in FOR_REFITS else own.tokens
    per_unit, importance = within_memory(
        lambda: saliency(loaded.model, blocks, tokens.to(loaded.device), micro_batch),
        lambda count: saliency(loaded.model, blocks, tokens[:count].to(loaded.device), count),
        what=f"the base model's pass for the saliency {config.saliency}",
        micro_batch=min(micro_batch, len(tokens)),
        device=loaded.device,
    )
    ordering = Ordering.from_saliency(blocks, per_unit)
    if path is not None:
        written = {f"{i}.{name}": v for (i, name), v in importance.items()}
        ordering.save(path, {"saliency": config.saliency, "importance": json.dumps(written)})
    return ordering, importance
