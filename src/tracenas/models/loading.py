"""Loading a causal language model with its tokenizer: a directory or the hub (safetensors only), or a GGUF file."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tracenas.dtypes import TORCH_NAMES, short_name
from tracenas.errors import UserError, first_line
from tracenas.families import Block, Options
from tracenas.models.dequantised import dequantise
from tracenas.models.source import ModelSource, open_source
from tracenas.rundir import read_json

__all__ = ["LoadedModel", "dtype_to_save", "load", "pick_device", "pick_dtype"]

_DTYPES: dict[str, torch.dtype] = {ours: getattr(torch, theirs) for ours, theirs in TORCH_NAMES.items()}


@dataclass
class LoadedModel:
    """A model in memory and everything the stages ask of it."""

    source: ModelSource
    model: Any
    """A transformers `PreTrainedModel` with a language-model head, in eval mode, weights frozen."""
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(iter(self.model.parameters())).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        dtype: torch.dtype = next(iter(self.model.parameters())).dtype
        return dtype

    @property
    def dtype_name(self) -> str:
        """The weights' dtype as settings name it: `fp32`, `bf16` or `fp16`."""
        return short_name(str(self.dtype))

    def blocks(self, options: Options | None = None) -> tuple[Block, ...]:
        """The model's blocks."""
        return self.source.blocks(options)

    @property
    def eos(self) -> int:
        """The end-of-document token.

        Raises:
            UserError: if neither tokenizer nor configuration names one.
        """
        token = self.tokenizer.eos_token_id if self.tokenizer is not None else None
        if token is None:
            token = self.source.config.get("eos_token_id")
        if isinstance(token, list):
            token = token[0]
        if token is None:
            raise UserError(f"model {self.source.name}: neither tokenizer nor config.json names an EOS token")
        return int(token)


def pick_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one), `cpu`, `cuda`, `cuda:1`.

    Raises:
        UserError: for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device '{name}': accepted: auto, cpu, cuda, cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}': accepted: auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}': this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype by name, or `auto`: bf16 on CUDA, fp32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if (short := short_name(name)) not in _DTYPES:
        raise UserError(f"dtype '{name}': accepted: auto, {', '.join(_DTYPES)}, or torch's names of them")
    return _DTYPES[short]


def dtype_to_save(asked: str, source: ModelSource, otherwise: torch.dtype) -> torch.dtype:
    """Of a checkpoint made from a model: by name, or `auto`: what the model's own config.json says.

    Args:
        otherwise: for `auto` where that says nothing.
    """
    if asked != "auto":
        return _DTYPES[short_name(asked)]
    named = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), None)
    return named if isinstance(named, torch.dtype) else otherwise


def load(
    name: str | ModelSource, *, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load model and tokenizer, frozen and in eval mode.

    Our own pruned checkpoints load without remote code: their classes live in this package.

    Raises:
        UserError: for a model that is not there, is damaged or has no safetensors.
    """
    source = name if isinstance(name, ModelSource) else open_source(name)
    target = pick_device(device)
    if source.gguf is not None and source.path is not None:
        dequantise(source.gguf, source.path)
        source = replace(source, config=source.family.normalised(read_json(source.path / "config.json"), None))
    model = _load_model(source, pick_dtype(dtype, target), trust_remote_code)
    model.to(target).eval().requires_grad_(False)
    return LoadedModel(source, model, _load_tokenizer(source, trust_remote_code))


def _load_model(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.utils import logging

    from tracenas.models.checkpoint import check_checkpoint
    from tracenas.models.heterogeneous import register

    register(source.family.model_type)
    logging.disable_progress_bar()
    if source.path is not None:
        check_checkpoint(source.path)
    remote = trust_remote_code and not str(source.config.get("model_type", "")).startswith("tracenas_")
    auto: Any = AutoModelForSeq2SeqLM if source.is_encoder_decoder else AutoModelForCausalLM
    try:
        loaded: Any = auto.from_pretrained(
            str(source.path or source.name),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"model {source.name}: cannot be loaded: {first_line(error)[:240]}") from error
    model: nn.Module = loaded[0]
    info = loaded[1]
    problems = [*info["missing_keys"], *(str(k) for k in info.get("mismatched_keys", ()))]
    if problems:
        raise UserError(
            f"model {source.name}: {len(problems)} tensors are missing or of another shape, first: {problems[0]}"
        )
    if source.is_encoder_decoder:
        _check_encoder_decoder(source, model)
    return model


def _check_encoder_decoder(source: ModelSource, model: Any) -> None:
    """Refuse what would be counted wrong, or has no token to start with.

    Raises:
        UserError: naming the key of config.json.
    """
    if getattr(model.config, "decoder_start_token_id", None) is None:
        raise UserError(f"model {source.name}: config.json names no decoder_start_token_id")
    described = not source.family.tied(source.config)
    if described != (model.get_output_embeddings().weight is not model.get_input_embeddings().weight):
        said, found = ("a tensor of its own", "the embeddings") if described else ("the embeddings", "another tensor")
        raise UserError(
            f"model {source.name}: by config.json the head is {said}, in the files it is {found}; "
            "correct tie_word_embeddings"
        )


def _load_tokenizer(source: ModelSource, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source.path or source.name), trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises plain Exception
        if source.path is not None and (source.path / "tokenizer.json").is_file():
            raise UserError(f"model {source.name}: tokenizer.json cannot be read: {first_line(error)}") from error
        if not isinstance(error, OSError | ValueError | KeyError):
            raise
        return None
