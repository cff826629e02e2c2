"""Train the demo checkpoint: a 4.2M-parameter Llama-type decoder with a context of 256 tokens.

Text: ASCII documentation and source of a Debian 12 system (manual pages, /usr/share/doc, the
Python standard library), 95 % for training. A quarter of each batch are pass-key questions, so
that retrieval at a distance is learned. About 65 minutes on two cores: 4510 steps of 16 x 256
tokens, AdamW, cosine schedule.

Usage: make_demo.py DATA.bin TOKENIZER.json OUT SECONDS, where DATA.bin holds uint16 token ids of
the byte-level BPE tokenizer (2048 tokens, trained on the same text).
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 256
BATCH = 16
PASS_KEYS = 4  # rows of a batch that are pass-key questions
PEAK_RATE = 2e-3
ANSWER_WEIGHT = 3.0

Tokens = NDArray[np.uint16]


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )


def pass_key_row(encode: Callable[[str], list[int]], data: Tokens) -> tuple[list[int], int]:
    """Tokens of one question in filler text, and the length of the part that is asked."""
    key = "".join(random.choice("0123456789") for _ in range(5))
    told = encode(f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n")
    asked = encode(f"\nWhat is the pass key? The pass key is {key}.\n")
    count = LENGTH - len(told) - len(asked)
    start = random.randrange(len(data) - count)
    filler = data[start : start + count].tolist()
    at = random.randrange(count + 1)
    return [1] + filler[:at] + told + filler[at:] + asked, len(asked)


def make_batch(encode: Callable[[str], list[int]], data: Tokens) -> tuple[torch.Tensor, ...]:
    """Token ids [batch, length + 1] and the weight of each prediction [batch, length]."""
    rows, weight = [], torch.ones(BATCH, LENGTH)
    for index in range(BATCH):
        if index < PASS_KEYS:
            row, asked = pass_key_row(encode, data)
            rows.append(row[: LENGTH + 1])
            weight[index, -asked:] = ANSWER_WEIGHT
        else:
            start = random.randrange(len(data) - LENGTH - 1)
            rows.append(data[start : start + LENGTH + 1].tolist())
    return torch.tensor(rows), weight


def main(data_file: str, tokenizer_file: str, out: str, seconds: float) -> None:
    torch.manual_seed(0)
    random.seed(0)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    data = np.fromfile(data_file, np.uint16)
    model = LlamaForCausalLM(config())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    begin, step = time.time(), 0
    while (done := (time.time() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            cosine = 0.475 * (1 + math.cos(math.pi * done)) + 0.05
            group["lr"] = PEAK_RATE * min(1, (step + 1) / 100) * cosine
        tokens, weight = make_batch(lambda text: tokenizer.encode(text).ids, data)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        ).view(BATCH, LENGTH)
        optimizer.zero_grad()
        torch.autograd.backward((loss * weight).sum() / weight.sum())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    model.bfloat16().save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
