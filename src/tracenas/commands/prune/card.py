"""The model card of a pruned checkpoint: the command that writes it, its losses and how it was realised."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracenas.config import PruneConfig
from tracenas.data.tokens import noted_source
from tracenas.models.checkpoints.card import model_card
from tracenas.models.checkpoints.published import published
from tracenas.models.checkpoints.readme import read_front_matter
from tracenas.models.checkpoints.writing import Draft
from tracenas.pipeline.one_shot import OneShot
from tracenas.pipeline.run_directory import CALIBRATION
from tracenas.pipeline.serving import serving
from tracenas.pipeline.session import Session
from tracenas.rundir import provenance

__all__ = ["pruned_card"]

_UNITS = (
    *(
        "method",
        "params",
        "budget",
        "tolerance",
        "context",
        "serve_batch",
        "outtype",
        *("latency", "latency_anyway", "prompt"),
        "saliency",
        "allocation",
        "gamma",
        "kv_groups",
        "min_depth",
        "keep_layers",
    ),
    *("exclude", "channel_quantum", "head_quantum", "deploy", "samples", "seq_len", "text_field", "seed", "dtype"),
    *("bos", "depth_granularity"),
)
"""Settings that decide which units are kept, where no run has decided it."""

_REALISATION = (
    *("compensate", "compensate_samples", "ridge", "ridge_scale", "reconstruct", "reconstruct_steps"),
    *("reconstruct_rate", "scales", "sensitivity", "save_dtype", "shard_size"),
)
"""Settings that decide what is written of them."""


def pruned_card(
    config: PruneConfig, session: Session, draft: Draft, losses: Mapping[str, str], one_shot: OneShot | None
) -> str:
    """README.md of the checkpoint.

    Args:
        losses: lines on how it was realised, and with what losses.
        one_shot: what the method made of the budget; None: the architecture was given.
    """
    text = session.refit.data if session.run is None else noted_source(session.run / CALIBRATION)
    source, space, (count, length) = session.target.source, session.space, session.tokens.shape
    return model_card(
        config.out.name,
        source.address,
        session.blocks,
        draft.layers,
        serving=serving(config.out.name, source.family, draft.config),
        parameters=(space.parameters(space.base), draft.parameters),
        stubs=draft.stub_parameters,
        pipeline="text2text-generation" if draft.config.get("is_encoder_decoder") else "text-generation",
        command=shlex.join(_command(_resolved(config, session), searched=session.run is not None)),
        numbers={
            **({"calibration text": published(text)} if text is not None else {}),
            "calibration windows": f"{count} of {length} tokens, {session.start}",
            **({"sub-blocks kept at full width": config.exclude} if config.exclude else {}),
            **losses,
            **(one_shot.card() if one_shot is not None else {}),
        },
        license=read_front_matter(source.path).get("license"),
        origin=source.origin,
        provenance=provenance(seed=config.seed),
    )


def _resolved(config: PruneConfig, session: Session) -> PruneConfig:
    """The settings with what `auto` came to here: elsewhere it may come to another dtype."""
    return config.model_copy(update={"dtype": session.loaded.dtype_name}) if config.dtype == "auto" else config


def _command(config: PruneConfig, searched: bool) -> list[str]:
    """The words of the command that writes this checkpoint.

    Args:
        searched: whether the architecture is a run's, which has text and units of its own.
    """
    command = ["tracenas", "prune", published(config.model), "--out", config.out.name]
    if config.arch is not None:
        command += ["--arch", published(str(config.arch))]
    if config.data is not None:
        command += ["--data", published(config.data)]
    for name, value in _explicit(config, _REALISATION if searched else (*_UNITS, *_REALISATION)):
        option = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{option}" if value else f"--no-{option}")
            continue
        for one in value if isinstance(value, tuple) else (value,):
            command += [f"--{option}", published(str(one))]
    return [*command, "--stub-removed-attention"] if config.stub_removed_attention else command


def _explicit(config: PruneConfig, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Settings with their values that are not left to their defaults."""
    values = ((name, getattr(config, name)) for name in names if name in config.model_fields_set)
    return ((name, value) for name, value in values if value is not None)
