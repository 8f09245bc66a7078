"""What a model is and how it is sampled by default: sizes and settings, and their checks.

Where they are read from is `hgt_infer.artifact.folder`'s and `hgt_infer.export`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hgt_infer.artifact.checked_json import check_integer, check_keys, check_number, format_error
from hgt_infer.sampling_params import MAX_REPETITION_PENALTY, MIN_REPETITION_PENALTY

# Larger than any GPT-2 by far, small enough that no product of two of them overflows int64.
_SIZE_LIMITS = {
    "n_layer": 1 << 10,
    "n_head": 1 << 10,
    "n_embd": 1 << 16,
    "n_inner": 1 << 20,
    "n_positions": 1 << 20,
    "vocab_size": 1 << 24,
}
_MAX_LENGTH = (1 << 31) - 1
_MAX_EOS_TOKENS = 64
_MAX_PREFIX_CHARACTERS = 10_000


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a GPT-2 model, under Hugging Face's names.

    Attributes:
        n_layer: transformer blocks.
        n_head: attention heads of a block.
        n_embd: width of the residual stream, a multiple of `n_head`.
        n_inner: width of the feed-forward layer.
        n_positions: longest context, in tokens.
        vocab_size: rows of the token embedding.
        layer_norm_epsilon: added to the variance in every LayerNorm.
    """

    n_layer: int
    n_head: int
    n_embd: int
    n_inner: int
    n_positions: int
    vocab_size: int
    layer_norm_epsilon: float

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head


@dataclass(frozen=True)
class GenerationDefaults:
    """What a call that names no setting gets: the settings that transformers' pipeline would use.

    They are resolved: none of them takes precedence over another.

    Attributes:
        do_sample: False takes the likeliest token.
        temperature: divides the logits; 0 only where `do_sample` is False.
        top_k: how many of the likeliest tokens stay; 0 keeps all.
        top_p: probability mass of the likeliest tokens that stay; 1.0 keeps all.
        min_length: EOS is not sampled before this many tokens, prompt and prefix counted.
        max_length: tokens at most, prompt and prefix counted; None where `max_new_tokens` is set.
        max_new_tokens: tokens sampled at most. None, with `max_length` None too, fills the context.
        min_new_tokens: EOS is not sampled before this many new tokens.
        eos_token_ids: a sequence ends at any of these.
        prefix: text that is put before every prompt; "" for none.
        min_p: tokens stay that are at least this many times as likely as the likeliest; 0 keeps all.
        typical_p: mass of the tokens nearest to the entropy that stay; 1.0 keeps all.
        repetition_penalty: divides the logits of tokens that occurred, multiplies negative ones; 1.0 is off.
        no_repeat_ngram_size: tokens in a row that do not occur twice; 0 is off.
    """

    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    min_length: int
    max_length: int | None
    max_new_tokens: int | None
    min_new_tokens: int | None
    eos_token_ids: tuple[int, ...]
    prefix: str
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0


def parse_model_config(values: Mapping[str, Any], *, path: Path) -> ModelConfig:
    """Make a ModelConfig out of exactly its fields, each checked for type and range.

    Args:
        values: the fields, as read from JSON.
        path: the file they come from, for the message.

    Raises:
        ModelFormatError: a field is missing, unknown or out of range.
    """
    check_keys(path, "the model", values, {field.name for field in fields(ModelConfig)})
    sizes = {name: check_integer(path, name, values[name], 1, limit) for name, limit in _SIZE_LIMITS.items()}
    if sizes["n_embd"] % sizes["n_head"]:
        raise format_error(
            path, "n_embd to be a multiple of n_head", f"{sizes['n_embd']} and {sizes['n_head']}"
        )
    epsilon = check_number(path, "layer_norm_epsilon", values["layer_norm_epsilon"], 0.0, 1.0)
    if epsilon == 0.0:
        raise format_error(path, "layer_norm_epsilon above 0", epsilon)
    return ModelConfig(**sizes, layer_norm_epsilon=epsilon)


def parse_generation_defaults(
    values: Mapping[str, Any], *, vocab_size: int, path: Path
) -> GenerationDefaults:
    """Make GenerationDefaults out of exactly its fields, each checked for type and range.

    Args:
        values: the fields, as read from JSON.
        vocab_size: token ids must be below it.
        path: the file they come from, for the message.

    Raises:
        ModelFormatError: a field is missing, unknown or out of range.
    """
    check_keys(path, "the generation settings", values, {field.name for field in fields(GenerationDefaults)})
    do_sample, prefix, ids = values["do_sample"], values["prefix"], values["eos_token_ids"]
    if not isinstance(do_sample, bool):
        raise format_error(path, "do_sample to be true or false", do_sample)
    if not isinstance(prefix, str) or len(prefix) > _MAX_PREFIX_CHARACTERS:
        raise format_error(
            path, f"prefix to be a text of at most {_MAX_PREFIX_CHARACTERS} characters", prefix
        )
    if not isinstance(ids, list | tuple) or len(ids) > _MAX_EOS_TOKENS:
        raise format_error(path, f"eos_token_ids to be a list of at most {_MAX_EOS_TOKENS} ids", ids)
    temperature = check_number(path, "temperature", values["temperature"], 0.0, 1e6)
    if do_sample and temperature == 0.0:
        raise format_error(path, "temperature above 0 where do_sample is true", temperature)

    def integer(name: str, low: int = 0) -> int:
        return check_integer(path, name, values[name], low, _MAX_LENGTH)

    def mass(name: str) -> float:
        value = check_number(path, name, values[name], 0.0, 1.0)
        if value == 0.0:
            raise format_error(path, f"{name} above 0", value)
        return value

    def optional(name: str, low: int) -> int | None:
        return None if values[name] is None else integer(name, low)

    return GenerationDefaults(
        do_sample=do_sample,
        temperature=temperature,
        top_k=integer("top_k"),
        top_p=mass("top_p"),
        min_length=integer("min_length"),
        max_length=optional("max_length", 1),
        max_new_tokens=optional("max_new_tokens", 1),
        min_new_tokens=optional("min_new_tokens", 0),
        eos_token_ids=tuple(check_integer(path, "eos_token_ids", id_, 0, vocab_size - 1) for id_ in ids),
        prefix=prefix,
        min_p=check_number(path, "min_p", values["min_p"], 0.0, 1.0),
        typical_p=mass("typical_p"),
        repetition_penalty=check_number(
            path,
            "repetition_penalty",
            values["repetition_penalty"],
            MIN_REPETITION_PENALTY,
            MAX_REPETITION_PENALTY,
        ),
        no_repeat_ngram_size=integer("no_repeat_ngram_size"),
    )
