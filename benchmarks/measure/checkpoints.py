"""Checkpoints of seeded random weights and a tokenizer of bytes, made by transformers or without PyTorch."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0
END_OF_TEXT = "<|endoftext|>"
INITIALIZER_RANGE = 0.08  # spreads the logits as training does; the usual 0.02 leaves them nearly uniform
GPT2_124M = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


def gpt2_small() -> Any:
    """transformers' configuration of a model that costs next to nothing, so that what is around it shows."""
    from transformers import GPT2Config

    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 400, "n_positions": 1024}
    return GPT2Config(**sizes, initializer_range=0.3, bos_token_id=399, eos_token_id=399)


def write_model(folder: Path, config: Any = None) -> Path:
    """Write the checkpoint of a benchmark into a folder: of the config's model, or of GPT-2 124M for None."""
    from transformers import GPT2Config

    if config is not None:
        return write_checkpoint(folder / "small", config)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), GPT2_124M["vocab_size"] - 1)
    config = GPT2Config(**GPT2_124M, initializer_range=INITIALIZER_RANGE, **ends)
    return write_checkpoint(folder / "gpt2-124m", config)


def write_checkpoint(folder: Path, config: Any) -> Path:
    """Write transformers' model of a configuration; a folder that is there is kept."""
    if folder.exists():
        return folder
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(config)
    with _written_whole(folder, config.vocab_size) as partial:
        model.save_pretrained(partial)
    return folder


def write_numpy_checkpoint(
    folder: Path, sizes: dict[str, int], weights: Callable[[dict[str, int]], dict[str, Any]] | None = None
) -> Path:
    """Write a model of such sizes without PyTorch; a folder that is there is kept.

    weights: called with the sizes, gives all weights by their names; None: initialized ones.
    """
    if folder.exists():
        return folder
    from safetensors.numpy import save_file

    end_of_text = sizes["vocab_size"] - 1
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **sizes,
        "n_ctx": sizes["n_positions"],
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }
    with _written_whole(folder, sizes["vocab_size"]) as partial:
        save_file(
            (weights or _random_weights)(sizes), partial / "model.safetensors", metadata={"format": "pt"}
        )
        (partial / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def _written_whole(folder: Path, vocab_size: int) -> Iterator[Path]:
    """A folder to write a checkpoint into; it gets its tokenizer and its name when all is there."""
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        byte_tokenizer(vocab_size).save(str(partial / "tokenizer.json"))
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special}
        (partial / "tokenizer_config.json").write_text(json.dumps(settings))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _random_weights(sizes: dict[str, int]) -> dict[str, Any]:
    """GPT-2's weights by their names, initialized as transformers does it, but for INITIALIZER_RANGE."""
    rng = np.random.default_rng(SEED)
    width, num_layers = sizes["n_embd"], sizes["n_layer"]

    def normal(*shape: int, scale: float = INITIALIZER_RANGE) -> Any:
        return rng.standard_normal(shape, np.float32) * np.float32(scale)

    weights = {
        "transformer.wte.weight": normal(sizes["vocab_size"], width),
        "transformer.wpe.weight": normal(sizes["n_positions"], width),
    }
    norms = ["transformer.ln_f"]
    for layer in range(num_layers):
        block = f"transformer.h.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        residual = INITIALIZER_RANGE / (2 * num_layers) ** 0.5
        for name, rows, columns, scale in (
            ("attn.c_attn", width, 3 * width, INITIALIZER_RANGE),
            ("attn.c_proj", width, width, residual),
            ("mlp.c_fc", width, 4 * width, INITIALIZER_RANGE),
            ("mlp.c_proj", 4 * width, width, residual),
        ):
            weights[f"{block}.{name}.weight"] = normal(rows, columns, scale=scale)
            weights[f"{block}.{name}.bias"] = np.zeros(columns, np.float32)
    for norm in norms:
        weights[f"{norm}.weight"] = np.ones(width, np.float32)
        weights[f"{norm}.bias"] = np.zeros(width, np.float32)
    return weights


def byte_tokenizer(vocab_size: int) -> Any:
    """A BPE without merges: the 256 bytes, words that only decoding gives, and <|endoftext|> last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = byte_characters()
    tokens += [f"Ġw{id_}" for id_ in range(len(tokens), vocab_size - 1)]
    tokens.append(END_OF_TEXT)
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def byte_characters() -> list[str]:
    """The characters that stand for the 256 bytes, in the order of their ids in `byte_tokenizer`."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
