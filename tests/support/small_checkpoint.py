"""The smallest checkpoint that transformers takes, for tests that change its files one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 32, "vocab_size": 320}
IDS = {"bos_token_id": 0, "eos_token_id": 0}
END = "<|endoftext|>"

CORPUS = ["My dream is to be the very model of a modern major general.", "the theme there 日本 🦙 1234"]


def small_model() -> Any:
    """A seeded GPT-2 of SIZES."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**SIZES, **IDS)).eval()


def write_small_checkpoint(folder: Path) -> Path:
    """Write the model with the safetensors of today and the config.json and tokenizer of 2021."""
    small_model().save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    write(folder / "config.json", {"model_type": "gpt2", **SIZES, **IDS})
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(CORPUS * 4, vocab_size=300, special_tokens=[END], show_progress=False)
    bpe.save_model(str(folder))
    return folder


def write(path: Path, values: object) -> None:
    """Write values as JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")


def update(path: Path, **values: object) -> None:
    """Put values into a JSON file that need not be there."""
    write(path, (json.loads(path.read_text()) if path.exists() else {}) | values)
