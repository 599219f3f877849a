"""Whether a model directory would load whole, from its headers and its config.json, before anything is read."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracenas.errors import UserError, one_line
from tracenas.models.checkpoints.configuration import empty_model, named_tensors
from tracenas.models.checkpoints.headers import counted, stored_tensors
from tracenas.models.shipped.checkpoint_code import language_model
from tracenas.rundir import read_json

__all__ = ["check_checkpoint"]


def check_checkpoint(path: Path) -> None:
    """Refuse a directory that would not load, or load with tensors missing, before anything is read.

    Checks that there is a config.json, that all shards are there and whole, and that they hold every tensor
    (in the right shape) of the model that config.json builds, where transformers itself would not rename any.

    Raises:
        UserError: naming the first thing that is wrong.
    """
    if not (path / "config.json").is_file():
        raise UserError(f"model {path}: the directory holds no config.json")
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"model {path}: config.json holds no object")
    stored = {name: tensor.shape for name, tensor in stored_tensors(path).items()}
    expected, aliases = _expected_shapes(path, config)
    stored |= {name: stored[alias] for name, alias in aliases if alias in stored and name not in stored}
    missing = [name for name in expected if name not in stored]
    if missing:
        raise UserError(f"model {path}: {counted(missing, 'is missing', 'are missing')}")
    wrong = [name for name, shape in expected.items() if stored[name] != shape]
    if wrong:
        shapes = f"{list(stored[wrong[0]])} in the file, {list(expected[wrong[0]])} by config.json"
        raise UserError(f"model {path}: tensor {wrong[0]} has another shape ({shapes})")


def _expected_shapes(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], list[tuple[str, str]]]:
    """Shapes of the tensors that must be there, none where transformers renames; and `(name, alias)`: under which other
    names they may stand in the files: of the tensor that is tied to it, or as the model without a head has it."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    base = str(config.get("base_model_type") or config.get("model_type"))
    try:
        causal = language_model(base)
    except KeyError:
        return {}, []
    names = () if "base_model_type" in config else (base, causal.__name__)
    if any(get_checkpoint_conversion_mapping(name) for name in names):
        return {}, []
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(empty_model(config))}
    except (StrictDataclassError, ValueError) as error:
        raise UserError(f"model {path}: transformers does not accept its config.json: {one_line(error)}") from error
    ignored = causal._keys_to_ignore_on_load_missing or ()
    needed = {name: s for name, s in shapes.items() if not any(re.search(pattern, name) for pattern in ignored)}
    tied = [(source, target) for target, source in (causal._tied_weights_keys or {}).items() if target not in shapes]
    return needed, [*tied, *((name, name.removeprefix(f"{causal.base_model_prefix}.")) for name in needed)]
