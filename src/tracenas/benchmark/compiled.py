"""Blocks through torch.compile; once for all widths, where the sizes of weights are symbols, as those of text are."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from tracenas.errors import UserError

__all__ = ["compile_blocks", "require_compiler"]

_SHAPES = 1024
"""Variants of a block's code that are kept: of tokens, and of what is bypassed."""


def require_compiler(device: str) -> None:
    """What torch.compile needs on a device.

    Raises:
        UserError: if it is missing.
    """
    import torch

    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError("backend torch-compile needs Triton on a GPU (the package triton); accepted: torch")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            "backend torch-compile needs a C++ compiler, g++ or clang++, on the PATH or named by CXX; accepted: torch"
        ) from error


def compile_blocks(model: Any, paths: Iterable[str], *, any_width: bool) -> None:
    """Compile the modules at these paths, in place; they are compiled when they are first called.

    Args:
        any_width: whether their weights will have other sizes, for which they are not to be compiled anew.
    """
    import torch._dynamo.config as settings

    settings.force_parameter_static_shapes = not any_width
    settings.force_nn_module_property_static_shapes = not any_width
    settings.recompile_limit = settings.accumulated_recompile_limit = _SHAPES
    for path in paths:
        module: nn.Module = model.get_submodule(path)
        module.compile(dynamic=True if any_width else None)
