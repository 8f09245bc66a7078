"""Makes a fast tokenizer out of a checkpoint's files, old or new, as transformers' AutoTokenizer would.

Encoding and decoding with it is `hgt_infer.artifact.tokenizer`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from hgt_infer.artifact.checked_json import format_error, read_json_object
from hgt_infer.artifact.config import ModelConfig
from hgt_infer.artifact.folder import TOKENIZER_FILE
from hgt_infer.errors import ModelFormatError

_MAX_VOCABULARY_BYTES = 64 << 20  # GPT-2's own tokenizer.json has 1.3 MB
_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
)
_ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
_GPT2_TOKENIZERS = ("GPT2Tokenizer", "GPT2TokenizerFast")


def read_tokenizer(
    folder: Path, config_values: Mapping[str, Any], config: ModelConfig
) -> tokenizers.Tokenizer:
    """Return the tokenizer that transformers' AutoTokenizer would make of the folder, as a fast one.

    Args:
        folder: the checkpoint.
        config_values: its config.json, which may name the tokenizer's class.
        config: all token ids must be below its `vocab_size`.

    Raises:
        ModelFormatError: a file is missing or damaged, or makes another tokenizer than GPT-2's.
    """
    settings = _read_optional(folder / "tokenizer_config.json")
    class_name = settings.get("tokenizer_class") or config_values.get("tokenizer_class") or "GPT2Tokenizer"
    if class_name not in (*_GPT2_TOKENIZERS, "PreTrainedTokenizerFast"):
        raise format_error(folder, "a tokenizer of GPT-2", f"tokenizer_class {class_name!r}")
    for name in ("auto_map", "split_special_tokens"):
        if settings.get(name):
            raise format_error(folder / "tokenizer_config.json", f"no {name}", settings[name])
    if class_name in _GPT2_TOKENIZERS:
        settings = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") | settings
    if "added_tokens_decoder" not in settings:  # else tokenizer_config.json says all
        settings |= _read_optional(folder / "special_tokens_map.json")

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        path = folder / "vocab.json"
    try:
        if path.name == TOKENIZER_FILE:
            tokenizer = tokenizers.Tokenizer.from_str(_read_text(path))
        else:
            tokenizer = _build_tokenizer(folder, settings)
        _add_tokens(tokenizer, folder, settings)
    except ModelFormatError:
        raise
    except BaseException as error:
        # The tokenizers library raises plain Exception, and for some damage Rust's PanicException.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise format_error(path, "a tokenizer", str(error).partition("\n")[0]) from error
    # GPT2TokenizerFast takes it from tokenizer_config.json even where tokenizer.json has it otherwise.
    add_prefix_space = bool(settings.get("add_prefix_space", False))
    if getattr(tokenizer.pre_tokenizer, "add_prefix_space", add_prefix_space) != add_prefix_space:
        tokenizer.pre_tokenizer.add_prefix_space = add_prefix_space
    tokenizer.no_truncation()
    tokenizer.no_padding()

    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= config.vocab_size:
        raise format_error(path, f"token ids below vocab_size {config.vocab_size}", f"id {largest}")
    return tokenizer


def _build_tokenizer(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    vocab_path, merges_path = folder / "vocab.json", folder / "merges.txt"
    for path in (vocab_path, merges_path):
        if not path.is_file():
            raise format_error(folder, f"{TOKENIZER_FILE}, or vocab.json and merges.txt", f"no {path.name}")
    vocab = read_json_object(vocab_path, max_bytes=_MAX_VOCABULARY_BYTES)
    if len(set(vocab.values())) != len(vocab):
        raise format_error(vocab_path, "an id of its own for each token", "an id twice")
    # The first line is a version, and what follows the last new line is not read.
    lines = _read_text(merges_path).split("\n")[1:-1]
    merges = list(dict.fromkeys(tuple(line.split()) for line in lines))
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    if settings.get("add_bos_token"):
        bos = _added_token(settings["bos_token"]).content
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", special_tokens=[(bos, vocab[bos])]
        )
    return tokenizer


def _add_tokens(tokenizer: tokenizers.Tokenizer, folder: Path, settings: Mapping[str, Any]) -> None:
    """Add the tokens of added_tokens_decoder or added_tokens.json, then the special ones by name."""
    special: list[Any] = []
    for name in _SPECIAL_TOKEN_NAMES:
        value = settings.get(name)
        special += value if isinstance(value, list) else [] if value is None else [value]
    special_contents = {_added_token(value).content for value in special}

    if "added_tokens_decoder" in settings:
        by_id = settings["added_tokens_decoder"].items()
        added = {int(token_id): _added_token(value) for token_id, value in by_id}
        known = {}
    else:
        by_content = _read_optional(folder / "added_tokens.json").items()
        added = {token_id: _added_token(content) for content, token_id in by_content}
        known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for token_id, token in sorted(added.items()):
        token.special = token.special or token.content in special_contents
        tokenizer.add_tokens([token])
        known[token.content] = token
        found = tokenizer.token_to_id(token.content)
        if found != token_id:
            raise format_error(folder, f"id {token_id} for {token.content!r}", found)

    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for value in special:
        token = _added_token(value)
        if token.content in known:  # keeps its attributes, whatever those of the special token are
            token = known[token.content]
        elif isinstance(value, str) and value in present:
            continue
        token.special = True
        tokenizer.add_tokens([token])


def _added_token(value: Any) -> tokenizers.AddedToken:
    """Return the token that a JSON string or object describes."""
    if isinstance(value, dict):
        return tokenizers.AddedToken(**{name: value[name] for name in _ADDED_TOKEN_FIELDS if name in value})
    return tokenizers.AddedToken(value)


def _read_text(path: Path) -> str:
    size_bytes = path.stat().st_size
    if size_bytes > _MAX_VOCABULARY_BYTES:
        raise format_error(path, f"at most {_MAX_VOCABULARY_BYTES} bytes", size_bytes)
    return path.read_text(encoding="utf-8")


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=_MAX_VOCABULARY_BYTES) if path.is_file() else {}
