"""Parts of a model replaced until a context ends: modules, parameters, and numbers that modules keep."""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

__all__ = ["Given", "StandIn", "replace_module", "replace_parameter", "replace_parameters", "set_attribute"]


class StandIn(nn.Module):
    """Stands in a module's place; other attributes are that module's own.

    Args:
        original: the module, of which this one is no parent.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["_original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


class Given(nn.Module):
    """Stands in the place of a sub-block of which is known what it gives.

    Args:
        outputs: how many values the replaced module returns (attention: hidden states and weights).
        value: of the hidden states that enter it: the first one; the others are None.
    """

    def __init__(self, outputs: int, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.outputs, self.value = outputs, value

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """What is known."""
        value = self.value(hidden_states)
        return value if self.outputs == 1 else (value, *([None] * (self.outputs - 1)))


def replace_module(model: nn.Module, path: str, module: nn.Module, undo: ExitStack) -> None:
    """Put `module` at `path`."""
    parent_path, _, name = path.rpartition(".")
    modules: dict[str, nn.Module | None] = model.get_submodule(parent_path)._modules
    undo.callback(modules.__setitem__, name, modules[name])
    modules[name] = module


def replace_parameter(module: nn.Module, name: str, value: Tensor, undo: ExitStack) -> None:
    """Put `value`, frozen, in a parameter's place; what is a trainable parameter already stays one."""
    parameters: dict[str, nn.Parameter | None] = module._parameters
    undo.callback(parameters.__setitem__, name, parameters[name])
    if isinstance(value, nn.Parameter) and value.requires_grad:
        parameters[name] = value
    else:
        parameters[name] = nn.Parameter(value, requires_grad=False)


def replace_parameters(module: nn.Module, values: Mapping[str, Tensor], undo: ExitStack) -> None:
    """Put values in the place of a module's parameters of these names, `mlp.down_proj.weight` among them."""
    for path, value in values.items():
        holder, _, name = path.rpartition(".")
        replace_parameter(module.get_submodule(holder), name, value, undo)


def set_attribute(holder: Any, path: str, value: Any, undo: ExitStack) -> None:
    """Set what `path` leads to from `holder` on; what is no module (a configuration) is shared: it is copied first."""
    *parts, name = path.split(".")
    for part in parts:
        inner = getattr(holder, part)
        if not isinstance(inner, nn.Module):
            undo.callback(setattr, holder, part, inner)
            inner = copy.copy(inner)
            setattr(holder, part, inner)
        holder = inner
    undo.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)
