"""vLLM's entry point (`vllm.general_plugins`): heterogeneous checkpoints served by vLLM's own layers.

Installed beside vLLM, the package is found by itself; no remote code is needed then. `register` runs in every process
of vLLM and imports vLLM only when that calls it; the model's own module is imported when such a model is loaded.
"""

import logging

from tracenas.models.checkpoints.serving import PLUGIN_FAMILIES

__all__ = ["MODEL", "architectures", "register"]

MODEL = "tracenas.exporters.vllm_model:TraceNASForCausalLM"
_log = logging.getLogger("vllm.plugins.tracenas")


def architectures() -> dict[str, str]:
    """The names that config.json has in `architectures` → the class that vLLM is to load."""
    from tracenas.models.shipped.checkpoint_code import class_names

    return {class_names(name)[2]: MODEL for name in PLUGIN_FAMILIES}


def register() -> None:
    """Make vLLM know the heterogeneous models of the families in `PLUGIN_FAMILIES`; may be called again.

    Where transformers is too old for them, other models must still load: says so in the log and leaves it at that.
    """
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    try:
        from tracenas.models.shipped import heterogeneous
    except ImportError as error:
        _log.warning("tracenas: pruned checkpoints are not registered: %s", error)
        return
    heterogeneous.register(*PLUGIN_FAMILIES)
    supported = ModelRegistry.get_supported_archs()
    for name, model in architectures().items():
        if name not in supported:
            ModelRegistry.register_model(name, model)
