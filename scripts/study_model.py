"""Train the 6-million-parameter Llama (GQA 8/4) of the correlation study from any text, on a CPU.

    python scripts/study_model.py TEXT... --out DIR [--steps 1200] [--threads 2]

Its weights (24 MB) are not committed; the same text, seed and number of threads give the same model. Windows of 256
tokens, 2,048 tokens a step; documents are divided by `<|endoftext|>`.
"""

import argparse
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|endoftext|>"
LENGTH, SEQUENCES, VOCABULARY = 256, 8, 2048
PEAK, WARMUP, CLIP = 2e-3, 60, 1.0


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.split(END), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def model_of(generator: torch.Generator) -> LlamaForCausalLM:
    """A Llama with 8 query and 4 key-value heads, 8 blocks, MLP 640."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=640,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, 0.03 * (0.25 if residual else 1.0), generator=generator)
    return model


def rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine to a tenth."""
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    return PEAK * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - WARMUP) / (steps - WARMUP))))


def main() -> None:
    """Train and write a Hugging Face directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = END.join(path.read_text(encoding="utf-8") for path in args.text)
    tokenizer = tokenizer_of(text)
    ids = [i for document in text.split(END) if document.strip() for i in (*tokenizer.encode(document.strip()), 0)]
    data = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    generator = torch.Generator().manual_seed(args.seed)
    model = model_of(generator)
    print(f"{data.numel():,} tokens, {model.num_parameters():,} parameters", flush=True)
    decayed = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.97), fused=True)
    order: list[int] = []
    started = time.perf_counter()
    for step in range(args.steps):
        if len(order) < SEQUENCES:
            order += torch.randperm(len(data), generator=generator).tolist()
        batch, order = data[order[:SEQUENCES]], order[SEQUENCES:]
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if step % 50 == 0 or step == args.steps - 1:
            print(f"step {step} loss {loss.item():.4f} {time.perf_counter() - started:.0f} s", flush=True)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
