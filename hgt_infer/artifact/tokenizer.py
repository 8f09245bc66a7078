"""Text to token ids and back, with the tokenizers library alone.

The tokenizer is read from an artifact's `tokenizer.json`; building it from an older checkpoint's
files is `hgt_infer.export.checkpoint`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
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

# The byte that each letter of a byte-level token stands for: itself where it is printable, else the next of
# the letters from U+0100 on (bytes_to_unicode of GPT-2's encoder.py).
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF_LETTER |= {chr(256 + index): byte for index, byte in enumerate(_OTHERS)}


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

    @cached_property
    def token_bytes(self) -> list[bytes]:
        """Bytes of every id from 0 to the largest; b"" for special tokens and for ids without a token.

        Those of any ids, joined and decoded with errors="replace", are `decode(ids)`. Made on first use,
        which takes about 40 ms for GPT-2's vocabulary; not to be changed.

        Raises:
            ModelFormatError: the tokenizer decodes by other rules than GPT-2's, so that a token has no bytes.
        """
        decoder = self._tokenizer.decoder
        if not isinstance(decoder, tokenizers.decoders.ByteLevel):
            raise ModelFormatError(f"tokenizer: expected a ByteLevel decoder, found: {decoder!r:.80}")
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        token_bytes = [b""] * (max(vocabulary.values(), default=-1) + 1)
        for token, token_id in vocabulary.items():
            token_bytes[token_id] = _token_bytes(token)
        # Again: an added token may have taken the id of another one.
        for token_id, added in self._tokenizer.get_added_tokens_decoder().items():
            token_bytes[token_id] = b"" if added.special else _token_bytes(added.content)
        return token_bytes

    @cached_property
    def max_token_length(self) -> int:
        """Letters of the longest token, 128 for GPT-2: no token covers more characters of a text.

        A text of more than max_length * max_token_length characters has more than max_length tokens, which
        `len` tells without encoding it. A letter of a token is a byte of the text, and characters are never
        more than their bytes; counting the text's bytes would refuse up to four times shorter ones, but
        needs all of its UTF-8. What a tokenizer drops counts too, though it takes no tokens: blanks beside
        an added token with lstrip or rstrip, what a normalizer removes, bytes that are not in the vocabulary.
        GPT-2's drops nothing.

        Made on first use, which takes about 20 ms for GPT-2's vocabulary.
        """
        return max(map(len, self._tokenizer.get_vocab()), default=0)

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


def _token_bytes(token: str) -> bytes:
    try:
        return bytes(map(_BYTE_OF_LETTER.__getitem__, token))
    except KeyError:  # an added token's own text; the tokenizers library decodes by the same rule
        return token.encode()


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
