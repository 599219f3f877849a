"""What a recovery with given settings comes to, before there is a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracenas.commands.recover.checks import parse_tokens
from tracenas.recovery.settings import SUSTAINED, batch_and_steps

__all__ = ["Training", "training"]


@dataclass(frozen=True)
class Training:
    """A recovery in numbers.

    Args:
        tokens: in all, whole batches.
        length: tokens per sequence.
        processes: one per device.
        adapters: whether adapters alone are trained.
        taught: whether the dense base runs, too.
        sharded: whether model and optimizer are shared out over the devices.
        kept: whether training states stay when it is done.
    """

    tokens: int
    length: int
    processes: int
    adapters: bool
    taught: bool
    sharded: bool
    kept: bool = False

    def seconds(self, forward: float, of_base: float, flops: float, *, half: bool) -> float:
        """An estimate: three forward passes' operations (adapters: two), and the base's where it teaches.

        Args:
            forward, of_base: operations per token, of the pruned model and of the base.
            flops: of this machine's matrix products, per second and device.
            half: whether these are of two bytes per number.
        """
        per_token = (2 if self.adapters else 3) * forward + self.taught * of_base
        share = SUSTAINED["bf16" if half else "fp32"]
        return self.tokens * per_token / (share * flops * self.processes)


def training(section: Mapping[str, Any], positions: int) -> Training:
    """What the settings of recover come to.

    Args:
        section: settings of recover, checked.
        positions: of the model.
    """
    method, tokens = section["method"], section.get("tokens")
    processes, length = int(section.get("processes", 1)), section.get("seq_len") or min(4096, positions)
    batch, steps = batch_and_steps(
        length,
        processes,
        tokens=None if tokens is None else parse_tokens(tokens),
        max_steps=section.get("max_steps"),
        batch=section.get("global_batch"),
        at_once=section.get("batch"),
        lora=method == "lora",
    )
    kinds = method == "lora", method == "distill"
    return Training(
        steps * batch * length,
        length,
        processes,
        *kinds,
        bool(section.get("fsdp")),
        bool(section.get("keep_checkpoints")),
    )
