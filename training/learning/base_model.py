"""The model and tokenizer that a run starts from: loaded, or made from random weights; with adapters where
asked for.

Loads PyTorch. What happens to them afterwards is `finetune`'s.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers  # type: ignore[import-untyped,unused-ignore]
import torch
from safetensors import SafetensorError
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from training.corpus.dataset import END_OF_TEXT
from training.errors import BaseModelError
from training.learning.presets import HEAD_SIZE, Lora, ScratchModel

LORA_TARGETS = ["c_attn", "c_proj", "c_fc"]  # both c_proj: of attention and of the MLP


def load_base(base: str) -> tuple[Any, Any]:
    """Load (tokenizer, model) of a hub id or folder, in float32.

    Raises:
        BaseModelError: it cannot be loaded, or is not a GPT-2.
    """
    # Without this file transformers guesses the kind of model from letters in the path.
    if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
        raise BaseModelError(f"base {base!r} cannot be loaded: the folder has no config.json")
    try:
        model_type = AutoConfig.from_pretrained(base).model_type
        if model_type == "gpt2":
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            return AutoTokenizer.from_pretrained(base), model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise BaseModelError(f"base {base!r} cannot be loaded: {reason}") from error
    raise BaseModelError(f"base {base!r} is a {model_type} model, expected gpt2")


def train_tokenizer(texts: Iterable[str], folder: Path, vocab_size: int, max_length: int) -> None:
    """Train a byte-level BPE in GPT-2's layout on the texts and save it into the folder.

    As in GPT-2, the vocabulary begins with the 256 bytes and ends with <|endoftext|>. A short text gives
    fewer than `vocab_size` entries.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.add_special_tokens([END_OF_TEXT])
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)

    # The trained model does not know the token that was added to it: written once more with it inside.
    layout = json.loads(bpe.to_str())
    layout["model"]["vocab"][END_OF_TEXT] = bpe.token_to_id(END_OF_TEXT)
    (folder / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": max_length,
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).model.save(str(folder))


def new_model(size: ScratchModel, tokenizer: Any, num_positions: int) -> Any:
    """Return a GPT-2 of the given size with random weights."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=num_positions,
            n_embd=size.hidden_size,
            n_layer=size.num_layers,
            n_head=size.hidden_size // HEAD_SIZE,
            resid_pdrop=size.dropout,
            embd_pdrop=size.dropout,
            attn_pdrop=size.dropout,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def with_adapters(model: Any, lora: Lora, *, gradient_checkpointing: bool) -> Any:
    """Freeze the model and return it with low-rank adapters that can be trained."""
    from peft import LoraConfig, get_peft_model

    if gradient_checkpointing:  # else no gradient reaches the layers from frozen embeddings
        model.enable_input_require_grads()
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LORA_TARGETS,
        fan_in_fan_out=True,  # GPT-2's matrices are stored [in, out]
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
