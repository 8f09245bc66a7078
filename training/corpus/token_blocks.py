"""Token ids of tweets, each tokenized once, and the blocks of the training file, put together when asked for.

4 epochs of 5 million tweets are 700 million tokens: what stays in memory is 16 bytes per tweet and epoch, the
token ids lie in a nameless temporary file.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.corpus.text_store import TextStore

TEXTS_AT_ONCE = 4096

Block = dict[str, NDArray[Any]]
"""`input_ids`, `labels` and, where texts are apart, `position_ids`, else `attention_mask`, [tokens] each."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of every text of a store.

    Attributes:
        token_ids: of all texts, one after the other, [tokens], mapped from a file.
        starts: text i is token_ids[starts[i] : starts[i + 1]], [texts + 1].
        end_of_text: the id that stands before, between and after texts in a file.
    """

    token_ids: NDArray[np.uint32]
    starts: NDArray[np.int64]
    end_of_text: int

    def __getitem__(self, index: int) -> NDArray[np.uint32]:
        return self.token_ids[self.starts[index] : self.starts[index + 1]]


def tokenize(texts: TextStore, tokenizer: Any, end_of_text: int) -> TokenizedTexts:
    """Tokenize every text by itself, in which `<|endoftext|>` is ordinary text.

    Args:
        texts: what to tokenize.
        tokenizer: a `tokenizers.Tokenizer`; left as it is.
        end_of_text: the id of `<|endoftext|>`.
    """
    tokenizer = type(tokenizer).from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True  # a tweet that quotes the token does not end there
    tokenizer.no_truncation()
    starts = np.zeros(len(texts) + 1, np.int64)
    remaining = iter(texts)
    with tempfile.TemporaryFile() as file:
        index = 1
        while chunk := list(islice(remaining, TEXTS_AT_ONCE)):
            for encoding in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                file.write(np.array(encoding.ids, np.uint32).tobytes())
                starts[index] = len(encoding.ids)
                index += 1
        file.flush()
        starts = starts.cumsum()
        no_tokens = starts[-1] == 0  # an empty file cannot be mapped
        token_ids = np.zeros(0, np.uint32) if no_tokens else np.memmap(file, np.uint32, mode="r")
    return TokenizedTexts(token_ids, starts, end_of_text)


class TokenBlocks:
    """A file of texts with `<|endoftext|>` before, between and after them, cut into blocks of equal length.

    The rest that fills no block is dropped: it is under one block of several epochs, and blocks of one length
    need no padding. Only a file shorter than one block stays, as a single short block.

    Args:
        texts: the token ids of each text.
        order: indices of the file's texts, [texts of the file].
        block_size: tokens of a block, ≥ 1; the model's context at most.
        apart: blocks have `position_ids` that are 0 at each `<|endoftext|>`, by which transformers tells
            where another text begins that must not see the one before it.

    >>> texts = TokenizedTexts(np.array([1, 2, 3, 4, 5], np.uint32), np.array([0, 2, 5]), 0)
    >>> [block["input_ids"].tolist() for block in TokenBlocks(texts, np.array([1, 0, 1]), 4)]
    [[0, 3, 4, 5], [0, 1, 2, 0], [3, 4, 5, 0]]
    """

    def __init__(
        self, texts: TokenizedTexts, order: NDArray[np.int64], block_size: int, *, apart: bool = False
    ) -> None:
        self._texts = texts
        self._order = order
        lengths = np.diff(texts.starts)[order] + 1  # with the <|endoftext|> before it
        self._starts = np.concatenate([[0], lengths.cumsum()])  # [texts of the file + 1]
        self.num_tokens = int(self._starts[-1]) + 1
        self.block_size = min(block_size, self.num_tokens)
        self._apart = apart
        self._context = block_size

    def __len__(self) -> int:
        return self.num_tokens // self.block_size

    def __getitem__(self, index: int) -> Block:
        """Return a block, [block_size] each array."""
        if not 0 <= index < len(self):
            raise IndexError(f"index is {index}, expected 0 to {len(self) - 1}")
        return self._block(index * self.block_size, (index + 1) * self.block_size)

    def overlapping(self, block_size: int) -> list[Block]:
        """Cut so that every token but the first is predicted exactly once, the last block being shorter.

        Neighbours share one token: the last of a block is the first, not predicted, of the next.

        >>> texts = TokenizedTexts(np.array([1, 2, 3, 4], np.uint32), np.array([0, 4]), 9)
        >>> blocks = TokenBlocks(texts, np.array([0]), 8).overlapping(3)
        >>> [block["input_ids"].tolist() for block in blocks]
        [[9, 1, 2], [2, 3, 4], [4, 9]]
        """
        starts = range(0, self.num_tokens - 1, block_size - 1)
        return [self._block(start, start + block_size) for start in starts]

    def _block(self, start: int, end: int) -> Block:
        """Return the file's tokens from `start` up to, not including, `end`, as far as there are any."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = min(int(np.searchsorted(self._starts, end)), len(self._order))
        end_of_text = np.array([self._texts.end_of_text], np.uint32)
        parts = [end_of_text]
        for index in self._order[first:last].tolist():
            parts += [self._texts[index], end_of_text]
        offset = int(self._starts[first])
        token_ids = np.concatenate(parts)[start - offset : end - offset].astype(np.int64)
        block = {"input_ids": token_ids, "labels": token_ids}
        if self._apart:
            beginnings = self._starts[first : last + 1]
            in_file = np.arange(start, start + len(token_ids))
            text = np.searchsorted(beginnings, in_file, side="right") - 1
            block["position_ids"] = (in_file - beginnings[text]) % self._context  # a longer text is cut
        else:
            # It hides nothing. Without it transformers looks for packed texts and makes a mask of its own.
            block["attention_mask"] = np.ones(len(token_ids), np.bool_)
        return block
