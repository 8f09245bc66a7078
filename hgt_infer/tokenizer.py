"""Text to token ids and back, with the tokenizers library alone.

The tokenizer is read from an artifact's `tokenizer.json`; building it from an older checkpoint's
files is `hgt_infer.export.checkpoint`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers

from hgt_infer.errors import ModelFormatError, ModelNotFoundError, ParameterError, PromptError

# In this order, as transformers does it: the later ones see what the earlier ones left.
_CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


class Tokenizer:
    """GPT-2's byte-level BPE, as transformers' `GPT2TokenizerFast` applies it.

    Safe to use from several threads at once.

    Args:
        path: a `tokenizer.json`. Truncation and padding that it asks for are switched off.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFormatError: the tokenizers library cannot read it.

    Example:
        tokenizer = Tokenizer(artifact.tokenizer_path)
        tokenizer.decode(tokenizer.encode("My dream is"))  # "My dream is"
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ModelNotFoundError(f"no tokenizer at {path}")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ModelFormatError(f"{path}: expected a tokenizer, found: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`.

        Special tokens such as `<|endoftext|>` are recognized inside the text. A prefix and a prompt
        are encoded as one text: BPE may merge across the border.

        Raises:
            PromptError: `text` has a surrogate code point, which UTF-8 cannot encode.
        """
        _check_text(text)
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, encoded in parallel.

        Raises:
            PromptError: a text has a surrogate code point, which UTF-8 cannot encode.
        """
        for text in texts:
            _check_text(text)
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `token_ids`.

        Bytes that are no whole UTF-8 character become U+FFFD. `clean_up_tokenization` is not applied.

        Args:
            token_ids: ids; those that the tokenizer does not know have no text.
            skip_special_tokens: leave out special tokens such as `<|endoftext|>`.

        Raises:
            ParameterError: an id is not within 0 to 2^32 - 1.
        """
        try:
            text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise ParameterError(
                f"token_ids must be from 0 to {2**32 - 1}; got {min(token_ids)} to {max(token_ids)}"
            ) from error
        return text


def clean_up_tokenization(text: str) -> str:
    """Undo the spaces that older tokenizers put before punctuation and English contractions.

    transformers' text-generation pipeline does this to prompt and completion by default, though
    GPT-2's tokenizer has no such spaces: a text that has them loses them.

    Example:
        >>> clean_up_tokenization("I do n't know . Do you ?")
        "I don't know. Do you?"
    """
    for spaced, joined in _CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str; got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"a text must be valid Unicode; character {error.start} is the lone surrogate "
            f"U+{ord(text[error.start]):04X}"
        ) from None
