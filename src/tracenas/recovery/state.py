"""Optimizer, schedule and random state as safetensors and JSON: no pickle is written or read."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tracenas.errors import UserError, first_line
from tracenas.rundir import read_json

__all__ = [
    "load_optimizer",
    "load_random_state",
    "load_weights",
    "optimizer_state",
    "save_optimizer",
    "save_random_state",
]

_OPTIMIZER = "optimizer.safetensors"
_PLAIN = "optimizer.json"


def optimizer_state(model: Any, optimizer: Any, *, sharded: bool) -> dict[str, Any]:
    """`{"state": {parameter: {name: value}}, "param_groups": […]}`.

    Args:
        sharded: gather the state of a model under `fully_shard` (every process must call; whole on rank 0, keys
            are parameter names); otherwise the optimizer's own `state_dict`.
    """
    if not sharded:
        plain: dict[str, Any] = optimizer.state_dict()
        return plain
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, _inner(optimizer), options=options))


def save_optimizer(directory: Path, state: Mapping[str, Any], scheduler: Any) -> None:
    """Write `optimizer_state` and the learning-rate schedule's state."""
    tensors: dict[str, torch.Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{parameter}/{name}"] = value.detach().cpu().contiguous()
            else:
                values.setdefault(str(parameter), {})[name] = value
    save_file(tensors, directory / _OPTIMIZER, metadata={"format": "pt"})
    plain = {"param_groups": state["param_groups"], "state": values, "scheduler": scheduler.state_dict()}
    (directory / _PLAIN).write_text(json.dumps(plain, default=_plain) + "\n", encoding="utf-8")


def load_optimizer(directory: Path, model: Any, optimizer: Any, scheduler: Any, *, sharded: bool) -> None:
    """Read what `save_optimizer` wrote; every process must call.

    Raises:
        UserError: if it is not there or damaged.
    """
    plain = read_json(directory / _PLAIN)
    state: dict[Any, dict[str, Any]] = {}
    for key, tensor in load_weights(directory / _OPTIMIZER).items():
        parameter, _, name = key.rpartition("/")
        state.setdefault(parameter, {})[name] = tensor
    for parameter, entries in plain["state"].items():
        state.setdefault(parameter, {}).update(entries)
    groups = [{**group, **_tuples(group)} for group in plain["param_groups"]]
    if sharded:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        complete: Any = {"state": state, "param_groups": groups}
        set_optimizer_state_dict(model, _inner(optimizer), complete, options=StateDictOptions(full_state_dict=True))
    else:
        complete = {"state": {int(k): v for k, v in state.items()}, "param_groups": groups}
        optimizer.load_state_dict(complete)
    scheduler.load_state_dict(plain["scheduler"])


def save_random_state(directory: Path, rank: int) -> None:
    """Write this process's random state: Python, NumPy, torch on CPU and on its CUDA devices."""
    legacy: Any = np.random.get_state(legacy=True)
    name, keys, place, has_gauss, gauss = legacy
    version, numbers, following = random.getstate()
    plain = {
        "python": json.dumps([version, list(numbers), following]),
        "numpy": json.dumps([name, place, has_gauss, gauss]),
    }
    tensors = {"numpy": torch.from_numpy(keys.astype(np.int64)), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    save_file(tensors, directory / f"random-{rank}.safetensors", metadata=plain)


def load_random_state(directory: Path, rank: int) -> None:
    """Set this process's random state; nothing happens where another number of processes saved it."""
    from safetensors import safe_open

    path = directory / f"random-{rank}.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as file:
        plain = file.metadata()
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    version, numbers, following = json.loads(plain["python"])
    random.setstate((version, tuple(numbers), following))
    name, place, has_gauss, gauss = json.loads(plain["numpy"])
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), place, has_gauss, gauss))
    torch.set_rng_state(tensors["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{index}"], index)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file.

    Raises:
        UserError: if it is not there or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"checkpoint {path}: cannot be read: {first_line(error)}") from error


def _inner(optimizer: Any) -> Any:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) for key, value in group.items() if isinstance(value, list) and key != "params"}


def _plain(value: object) -> Any:
    if isinstance(value, torch.Tensor):
        return value.item()
    raise TypeError(f"{type(value).__name__} in an optimizer's state is no plain value")
