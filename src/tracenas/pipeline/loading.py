"""Loading a command's model, with its progress shown."""

from contextlib import AbstractContextManager

from tracenas.config import StageConfig
from tracenas.models.checkpoints.fetching import fetch
from tracenas.models.checkpoints.loading import LoadedModel, load
from tracenas.models.checkpoints.source import ModelSource
from tracenas.paging import Keep, in_memory
from tracenas.reporting.progress import Phase, phase

__all__ = ["load_model", "loading"]


def load_model(
    source: ModelSource, config: StageConfig, keep: Keep = in_memory, *, streamed: bool = False
) -> LoadedModel:
    """The model on the device and in the dtype of the settings.

    Args:
        keep: where its weights lie.
        streamed: whether blocks wait on the CPU while others work on the device.

    Raises:
        UserError: if it cannot be loaded.
    """
    with loading(source):
        return load(
            source,
            device=config.device,
            dtype=config.dtype,
            trust_remote_code=config.trust_remote_code,
            keep=keep,
            streamed=streamed,
        )


def loading(source: ModelSource) -> AbstractContextManager[Phase]:
    """The phase of loading a model, which is here by then: the hub's own bars are those of a download.

    Raises:
        UserError: if it cannot be had.
    """
    fetch(source)
    return phase(f"load {source.repo or source.path.name}")
