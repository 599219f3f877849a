"""Loading a causal language model with its tokenizer: a directory or the hub (safetensors only), or a GGUF file."""

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import nn

from tracenas.dtypes import TORCH_NAMES, short_name
from tracenas.errors import UserError, one_line
from tracenas.families import Block, Options
from tracenas.models.checkpoints.bars import without_loading_bar
from tracenas.models.checkpoints.base_files import BaseFiles
from tracenas.models.checkpoints.checking import check_checkpoint
from tracenas.models.checkpoints.configuration import named_tensors
from tracenas.models.checkpoints.dequantised import dequantise
from tracenas.models.checkpoints.fetching import fetch
from tracenas.models.checkpoints.headers import FLOATS, stored_tensors
from tracenas.models.checkpoints.shards import DTYPES, Entry
from tracenas.models.checkpoints.source import ModelSource, as_stored_config, open_source
from tracenas.models.checkpoints.stored import as_loaded
from tracenas.models.checkpoints.tokenizer import load_tokenizer
from tracenas.models.shipped.heterogeneous import register
from tracenas.models.surgery.streaming import stream_blocks, streamed_blocks
from tracenas.paging import Keep, in_memory
from tracenas.rundir import read_json

__all__ = ["LoadedModel", "dtype_to_save", "dtypes_to_save", "load", "pick_device", "pick_dtype", "stored_entries"]

_DTYPES: dict[str, torch.dtype] = {ours: getattr(torch, theirs) for ours, theirs in TORCH_NAMES.items()}


@dataclass
class LoadedModel:
    """A model in memory and everything the stages ask of it."""

    source: ModelSource
    model: Any
    """A transformers `PreTrainedModel` with a language-model head, in eval mode, weights frozen."""
    tokenizer: Any
    files: BaseFiles
    """Its tokenizer's files and the like, for what is made of it."""
    tokenizer_trouble: str = ""
    """Why `tokenizer` is None although there are files of one."""
    keep: Keep = in_memory
    """Where its weights lie, and what is as large: in memory, or in paged files."""

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

    def require_tokenizer(self, what: str) -> Any:
        """The tokenizer.

        Args:
            what: it is wanted for, or can be given instead.

        Raises:
            UserError: if there is none, and why.
        """
        if self.tokenizer is None:
            trouble = f"'s tokenizer cannot be loaded: {self.tokenizer_trouble}" if self.tokenizer_trouble else ""
            raise UserError(f"model {self.source.name}{trouble or ' has no tokenizer'}; {what}")
        return self.tokenizer

    def tensors(self) -> dict[str, Entry]:
        """The weights by the model's names as its files hold them, in the types they are stored in."""
        return stored_entries(self.source, self.model)

    @property
    def streamed(self) -> bool:
        """Whether its blocks wait on the CPU while others work."""
        return streamed_blocks(self.model) is not None

    def release(self) -> None:
        """Free the weights' memory; the model is of no use afterwards."""
        if (streamed := streamed_blocks(self.model)) is not None:
            streamed.give_up()
        self.model.to("meta")

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
            token = next(iter(token), None)
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


def dtype_to_save(name: str) -> torch.dtype | None:
    """Of the written weights: the named type, or None for `auto`: each tensor keeps the one it is stored in."""
    return None if name == "auto" else _DTYPES[short_name(name)]


def dtypes_to_save(name: str, source: ModelSource, model: Any) -> dict[str, torch.dtype]:
    """The same for each tensor of a model that was made from `source` and has its tensors."""
    dtype, stored = dtype_to_save(name), stored_entries(source, model)
    return {n: dtype or (stored[n].dtype if n in stored else t.dtype) for n, t in named_tensors(model)}


def load(
    name: str | ModelSource,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    keep: Keep = in_memory,
    streamed: bool = False,
) -> LoadedModel:
    """Load model and tokenizer, frozen and in eval mode.

    Our own pruned checkpoints load without remote code: their classes live in this package.

    Args:
        keep: where the weights lie, on a CPU. Paged, they are read in the type that the files have, which is mapped,
            and cast one by one.
        streamed: whether blocks wait on the CPU, as `keep` says, while others work on the device.

    Raises:
        UserError: for a model that is not there, is damaged or has no safetensors, or has a weight that is no finite
            number, which nothing could be computed from.
    """
    source = name if isinstance(name, ModelSource) else open_source(name)
    target = pick_device(device)
    if source.packed is not None:
        dequantise(source.packed, source.path)
        config = as_stored_config(
            source.name, stored_tensors(source.path), read_json(source.path / "config.json"), source.family
        )
        source = replace(source, config=config)
    fetch(source)
    picked = pick_dtype(dtype, target)
    paging = keep is not in_memory and (target.type == "cpu" or streamed)
    model: Any = _load_model(source, _mapped_dtype(source, picked) if paging else picked, trust_remote_code)
    if getattr(model.config, "attn_logit_softcapping", None) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")  # transformers 5.17 chooses torch's attention, which caps no scores
    model.eval().requires_grad_(False)
    if not streamed:
        model.to(target)
    if paging:
        model.config.dtype = picked
        for parameter in model.parameters():
            parameter.data = keep(parameter.data, picked)
    _check_finite(source, model)
    if streamed:
        stream_blocks(model, [block.path for block in source.blocks()], target, keep)
    tokenizer, trouble = load_tokenizer(source, trust_remote_code)
    shipped = tokenizer is not None and type(tokenizer).__module__.startswith("transformers.")
    files = BaseFiles(source.path, type(tokenizer).__name__ if shipped else "")
    return LoadedModel(source, model, tokenizer, files, trouble, keep)


def _mapped_dtype(source: ModelSource, wanted: torch.dtype) -> torch.dtype:
    """What loses nothing of the files' weights, and leaves those mapped that have this type already."""
    types = {DTYPES[t.dtype] for t in stored_tensors(source.path).values() if t.dtype in FLOATS}
    return reduce(torch.promote_types, types) if types else wanted


def _load_model(source: ModelSource, dtype: torch.dtype, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    register(source.family.model_type)
    without_loading_bar()
    remote = trust_remote_code and not str(source.config.get("model_type", "")).startswith("tracenas_")
    auto: Any = AutoModelForSeq2SeqLM if source.is_encoder_decoder else AutoModelForCausalLM
    # where the files hold two matrices, config.json may say otherwise
    untied = {} if source.is_encoder_decoder or source.family.tied(source.config) else {"tie_word_embeddings": False}
    try:
        check_checkpoint(source.path)
        loaded: Any = auto.from_pretrained(
            str(source.path),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=remote,
            output_loading_info=True,
            **untied,
        )
    except UserError:
        raise
    except Exception as error:  # a setting that is missing, unknown or makes no sense, or a package that it asks for
        raise UserError(f"model {source.name}: cannot be loaded: {one_line(error)}") from error
    model: nn.Module = loaded[0]
    info = loaded[1]
    problems = [*info["missing_keys"], *(str(k) for k in info.get("mismatched_keys", ()))]
    if problems:
        raise UserError(
            f"model {source.name}: {len(problems)} tensors are missing or of another shape, first: {problems[0]}"
        )
    _check_tying(source, model)
    return model


def _check_tying(source: ModelSource, model: Any) -> None:
    """Refuse a model in which other tensors are tied than were described.

    Raises:
        UserError: naming the key of config.json; also if an encoder–decoder has no token to start with.
    """
    if source.is_encoder_decoder and getattr(model.config, "decoder_start_token_id", None) is None:
        raise UserError(f"model {source.name}: config.json names no decoder_start_token_id")
    tied = source.family.tied(source.config)
    apart = set(model.get_expanded_tied_weights_keys(all_submodels=True)) - set(model.all_tied_weights_keys)
    if apart := apart - set(() if tied else source.family.head_names):
        raise UserError(
            f"model {source.name}: by config.json {min(apart)} is the embeddings, in the files it is another tensor; "
            "correct tie_word_embeddings (of a model on the hub: download it, and name its directory)"
        )
    if not tied and model.get_output_embeddings().weight is model.get_input_embeddings().weight:
        raise UserError(
            f"model {source.name}: by config.json the head is a tensor of its own, in the files it is the embeddings; "
            "correct tie_word_embeddings"
        )


def _check_finite(source: ModelSource, model: Any) -> None:
    """Refuse weights that are NaN or infinite, as diverged trainings leave them, or a type of too small a range.

    Raises:
        UserError: naming the first such tensor, and the type that it was read in.
    """
    for name, parameter in model.named_parameters():
        if parameter.numel() and not all(bool(bound.isfinite()) for bound in torch.aminmax(parameter.data)):
            raise UserError(
                f"model {source.name}: tensor {name} holds NaN or infinities in {short_name(str(parameter.dtype))}"
            )


def stored_entries(source: ModelSource, model: Any) -> dict[str, Entry]:
    """What the files of a model hold, by the names that it has in memory (see `as_loaded`)."""
    return as_loaded(model, stored_tensors(source.path))
