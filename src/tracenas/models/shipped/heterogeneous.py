"""Heterogeneous models: the classes of a family, and how transformers' Auto classes come to know them."""

from typing import Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tracenas.models.shipped.checkpoint_code import is_encoder_decoder
from tracenas.models.shipped.decoder_only import build_decoder_only
from tracenas.models.shipped.encoder_decoder import build_encoder_decoder

__all__ = ["build", "register"]


def build(base_model_type: str) -> tuple[Any, Any, Any]:
    """`(configuration, model, language model)` classes over a family of transformers (`llama`).

    Raises:
        KeyError: if transformers has no such family.
    """
    if is_encoder_decoder(base_model_type):
        return build_encoder_decoder(base_model_type)
    return build_decoder_only(base_model_type)


def register(base_model_type: str, *others: str) -> None:
    """Make the Auto classes know heterogeneous models of these families.

    Afterwards such checkpoints load in this process without `trust_remote_code`.
    """
    for name in (base_model_type, *others):
        config, model, head = build(name)
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        auto: Any = AutoModelForSeq2SeqLM if is_encoder_decoder(name) else AutoModelForCausalLM
        auto.register(config, head, exist_ok=True)
