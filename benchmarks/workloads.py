"""What is run: prompts, settings, and the checkpoint of random weights. Nothing here runs a model."""

from __future__ import annotations

import json
import random
import secrets
import shutil
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 0
PROMPT_LENGTH = 4
BATCH_SIZES = (1, 5, 16)
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One call: `n` samples of each prompt, `num_new_tokens` tokens each, since end-of-text is suppressed.

    prompt_token_ids are those of `prompts`, the checkpoint's prefix included; all of one length, so that
    nothing is padded.
    """

    prompts: tuple[str, ...]
    prompt_token_ids: tuple[tuple[int, ...], ...]
    n: int = 1
    num_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 0.95

    @property
    def batch_size(self) -> int:
        return len(self.prompts) * self.n

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.num_new_tokens


def random_prompts(batch_size: int) -> Workload:
    """Different prompts of four letters, each a token of `byte_tokenizer`; a larger batch begins alike."""
    rng = random.Random(SEED)
    prompts: dict[str, None] = {}
    while len(prompts) < batch_size:
        prompts["".join(rng.choices(string.ascii_letters, k=PROMPT_LENGTH))] = None
    ids = {character: id_ for id_, character in enumerate(_byte_characters())}
    return Workload(
        prompts=tuple(prompts), prompt_token_ids=tuple(tuple(ids[c] for c in prompt) for prompt in prompts)
    )


def gpt2_124m() -> Any:
    """GPT-2's smallest size, with weights that spread the logits as training does.

    The usual initializer_range of 0.02 leaves all of the tokens about equally likely.
    """
    from transformers import GPT2Config

    return GPT2Config(initializer_range=0.08, bos_token_id=50256, eos_token_id=50256)


def write_checkpoint(folder: Path, config: Any) -> Path:
    """Write a checkpoint with seeded random weights and `byte_tokenizer`; a folder that is there is kept."""
    if folder.exists():
        return folder
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(SEED)
    model = GPT2LMHeadModel(config)
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        byte_tokenizer(config.vocab_size).save(str(partial / "tokenizer.json"))
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, **special}
        (partial / "tokenizer_config.json").write_text(json.dumps(settings))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def byte_tokenizer(vocab_size: int) -> Any:
    """A BPE without merges: the 256 bytes, words that only decoding gives, and <|endoftext|> last."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens = _byte_characters()
    tokens += [f"Ġw{id_}" for id_ in range(len(tokens), vocab_size - 1)]
    tokens.append(END_OF_TEXT)
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def _byte_characters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())
