"""A checkpoint directory as one GGUF file, which llama.cpp and Ollama read; written tensor by tensor."""

from tracenas.exporters.gguf.export import Exported, export_gguf

__all__ = ["Exported", "export_gguf"]
