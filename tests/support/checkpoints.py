"""Tiny seeded GPT-2 checkpoints for tests, laid out as those of 2021 or as today's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel

END_OF_TEXT = "<|endoftext|>"

TASK_PARAMS = {
    "do_sample": True,
    "min_length": 10,
    "max_length": 160,
    "temperature": 1.0,
    "top_p": 0.95,
    "prefix": END_OF_TEXT,
}
"""What huggingtweets saved into every model."""

CORPUS = [
    "My dream is to sleep until the kettle sings.",
    "I think that we should talk about the weather, don't you?",
    "The quick brown fox said: it's 7 o'clock & I'm late!",
    "nobody knows how the café got 3 naïve robots 🤖🤖 to dance",
    "a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9",
]


def train_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE in GPT-2's layout; its last id is <|endoftext|>, as GPT-2's is."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(CORPUS, vocab_size=vocab_size - 1, show_progress=False, min_frequency=1)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer._tokenizer


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    n_layer: int = 2,
    n_positions: int = 1100,
    layout: str = "2021",
    task_params: dict[str, Any] | None = TASK_PARAMS,
    weight_scale: float = 8.0,
) -> Path:
    """Write a checkpoint and return its folder.

    weight_scale spreads the logits: a freshly initialized GPT-2 is nearly uniform and tests little.
    layout "2021": pytorch_model.bin with the buffers of that time, vocab.json and merges.txt, no
    generation_config.json. "modern": model.safetensors, tokenizer.json, generation_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(400)
    vocab_size = tokenizer.get_vocab_size()
    end_of_text = vocab_size - 1
    config = GPT2Config(
        n_layer=n_layer,
        n_head=2,
        n_embd=128,
        n_positions=n_positions,
        vocab_size=vocab_size,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(weight_scale)
    values = json.loads(config.to_json_string(use_diff=False))
    values["architectures"] = ["GPT2LMHeadModel"]
    values["task_specific_params"] = {"text-generation": task_params} if task_params else None
    if layout == "modern":
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(
                {
                    "tokenizer_class": "GPT2Tokenizer",
                    "bos_token": END_OF_TEXT,
                    "eos_token": END_OF_TEXT,
                    "unk_token": END_OF_TEXT,
                }
            )
        )
        (folder / "config.json").write_text(json.dumps(values))
        return folder
    state = dict(model.state_dict())
    for layer in range(n_layer):
        mask = torch.ones(n_positions, n_positions, dtype=torch.uint8).tril()[None, None]
        state[f"transformer.h.{layer}.attn.bias"] = mask
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "pytorch_model.bin")
    bpe = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps({**bpe["vocab"], END_OF_TEXT: end_of_text}))
    merges = [" ".join(merge) for merge in bpe["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "model_max_length": n_positions}))
    known_2021 = {
        k: v for k, v in values.items() if v is not None and k not in ("dtype", "transformers_version")
    }
    (folder / "config.json").write_text(json.dumps(known_2021))
    return folder
