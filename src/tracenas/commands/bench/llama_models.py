"""Models in llama.cpp: GGUF files, as they are or exported for the time of the bench, each loaded for its trial."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tracenas.benchmark.latency import Trial, TrialSettings
from tracenas.config import BenchConfig
from tracenas.errors import UserError
from tracenas.exporters.gguf import export_gguf
from tracenas.models.checkpoints.gguf import GgufFile
from tracenas.models.checkpoints.source import ModelSource
from tracenas.pipeline.llama import LlamaCpp, llama_cpp
from tracenas.reporting.progress import phase

__all__ = ["LlamaModels", "llama_models"]

_AS_STORED = "as stored"


class LlamaModels:
    """Files by their places.

    Args:
        program: runs them.
        files: of the models.
        stored: what the matrices of each are stored in.
        notes: what is odd about them.
        parameters: of the models.
    """

    def __init__(
        self,
        program: LlamaCpp,
        files: Sequence[Path],
        stored: Sequence[str],
        notes: Sequence[str],
        parameters: Sequence[int],
        config: BenchConfig,
    ) -> None:
        self._program, self._files, self._stored, self._notes = program, files, stored, notes
        self.parameters, self._config = parameters, config

    @property
    def setting(self) -> dict[str, Any]:
        """What they run on and in."""
        machine = self._program.machine
        how = "what llama.cpp says of its buffers: weights, KV cache, computation and output"
        return {
            "device": "gpu" if self._program.gpu else "cpu",
            "device_name": machine["device"],
            "dtype": ", ".join(dict.fromkeys(self._stored)),
            "threads": machine["threads"],
            "llama_cpp": machine["llama_cpp"],
            "memory": "not measured" if self._config.no_memory else how,
            "notes": ["every model was loaded for every trial, with a short pass before it", *self._notes],
        }

    def trial(self, index: int, settings: TrialSettings) -> Trial:
        """One trial of a model."""
        with self._program.model(self._files[index]) as model:
            return model.trial(settings)

    def peak(self, index: int, settings: TrialSettings, trials: Sequence[Trial]) -> int:
        """What its buffers take."""
        return max(trial.extra_bytes for trial in trials)


@contextmanager
def llama_models(config: BenchConfig, sources: Sequence[ModelSource]) -> Iterator[LlamaModels]:
    """The models; files that were exported are removed behind the context.

    Raises:
        UserError: if llama-cpp-python is not installed, or a model has no layout in llama.cpp.
    """
    spaces = [source.space() for source in sources]
    with llama_cpp(config) as program, TemporaryDirectory(prefix="tracenas-bench-") as scratch:
        files, stored, notes = [], [], []
        for number, source in enumerate(sources):
            if isinstance(source.packed, GgufFile):
                if config.outtype != "auto":
                    raise UserError(f"outtype {config.outtype}: {source.name} is a GGUF file, which is run as it is")
                files.append(source.packed.path)
                stored.append(_AS_STORED)
                continue
            with phase(f"export {source.repo or source.path.name}"):
                out = Path(scratch) / f"{number}.gguf"
                made = export_gguf(source, out, outtype=config.outtype, tokenizer=False)
            files.append(out)
            stored.append(made.outtype)
            if made.added:
                notes.append(f"{source.name}: {made.added:,} zeros fill up its blocks in llama.cpp ({made.layout})")
        yield LlamaModels(program, files, stored, notes, [space.parameters(space.base) for space in spaces], config)
