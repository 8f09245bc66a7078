from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from training.corpus.dataset import END_OF_TEXT
from training.corpus.text_store import TextStore
from training.corpus.token_blocks import TokenBlocks, TokenizedTexts, tokenize

EOT = 999


def texts_of(lengths: list[int]) -> TokenizedTexts:
    """Texts of the given lengths whose tokens are 0, 1, 2, … throughout."""
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return TokenizedTexts(np.arange(starts[-1], dtype=np.uint32), starts, EOT)


def file_of(texts: TokenizedTexts, order: list[int]) -> list[int]:
    return [EOT, *(token for index in order for token in [*texts[index].tolist(), EOT])]


LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


@given(LENGTHS, st.data())
def test_blocks_are_the_file_cut_into_full_pieces(lengths: list[int], data: st.DataObject) -> None:
    order = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=30))
    block_size = data.draw(st.integers(1, 40))
    texts = texts_of(lengths)
    blocks = TokenBlocks(texts, np.array(order, np.int64), block_size)
    expected = file_of(texts, order)
    assert blocks.num_tokens == len(expected)
    cut = [block["input_ids"].tolist() for block in (blocks[i] for i in range(len(blocks)))]
    assert [token for block in cut for token in block] == expected[: len(cut) * blocks.block_size]
    if len(expected) >= block_size:
        assert {len(block) for block in cut} == {block_size}
        assert len(expected) - len(cut) * block_size < block_size
    else:
        assert cut == [expected]


@given(LENGTHS, st.integers(2, 40))
def test_overlapping_blocks_predict_each_token_once(lengths: list[int], block_size: int) -> None:
    order = list(range(len(lengths)))
    texts = texts_of(lengths)
    blocks = TokenBlocks(texts, np.array(order), block_size).overlapping(block_size)
    expected = file_of(texts, order)
    cut = [block["input_ids"].tolist() for block in blocks]
    assert [token for block in cut for token in block[1:]] == expected[1:]
    assert all(2 <= len(block) <= block_size for block in cut)
    assert all(before[-1] == after[0] for before, after in pairwise(cut))


@given(LENGTHS, st.integers(2, 40))
def test_positions_of_texts_that_are_apart_restart_at_each(lengths: list[int], block_size: int) -> None:
    order = [*range(len(lengths)), 0]
    blocks = TokenBlocks(texts_of(lengths), np.array(order), block_size, apart=True)
    expected = [position for index in order for position in range(lengths[index] + 1)] + [0]
    found = [block["position_ids"].tolist() for block in (blocks[i] for i in range(len(blocks)))]
    expected = [position % block_size for position in expected]
    assert [position for block in found for position in block] == expected[: len(found) * blocks.block_size]
    rest = blocks.overlapping(block_size)
    assert [position for block in rest for position in block["position_ids"][1:].tolist()] == expected[1:]


def test_texts_that_are_apart_are_predicted_as_by_themselves() -> None:
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=1000, n_positions=32, n_embd=64, n_layer=2, n_head=1, use_cache=False)
    model = GPT2LMHeadModel(config).eval()
    texts = texts_of([5, 0, 9, 3])
    order = [2, 0, 1, 3]
    [block] = TokenBlocks(texts, np.array(order), 32, apart=True).overlapping(32)
    inputs = {name: torch.from_numpy(array[None]) for name, array in block.items()}
    packed = model(**inputs).logits[0]
    alone = [model(torch.tensor([[EOT, *texts[index].tolist()]])).logits[0] for index in order]
    assert torch.allclose(packed[:-1], torch.cat(alone), atol=1e-5)
    as_one = model(inputs["input_ids"]).logits[0]
    assert not torch.allclose(packed, as_one, atol=1e-2)


def test_labels_are_the_tokens_and_a_block_beyond_the_end_is_none() -> None:
    blocks = TokenBlocks(texts_of([3, 4]), np.array([0, 1]), 4)
    assert blocks[0]["labels"].tolist() == blocks[0]["input_ids"].tolist()
    assert blocks[0]["labels"].dtype == np.int64
    assert blocks[0]["attention_mask"].tolist() == [True] * 4
    assert "attention_mask" not in TokenBlocks(texts_of([3]), np.array([0]), 4, apart=True)[0]
    for index in (-1, len(blocks)):
        with pytest.raises(IndexError):
            blocks[index]


@pytest.fixture
def tokenizer() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: number for number, character in enumerate(alphabet)} | {"Ġs": 256}
    result = Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "s")]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.add_special_tokens([END_OF_TEXT])
    return result


def test_every_text_is_tokenized_as_by_itself(tokenizer: Any) -> None:
    store = TextStore()
    for text in ["my soup", "", "föhn 🪿", "a" * 5_000]:
        store.append(text)
    texts = tokenize(store, tokenizer, 257)
    for index, text in enumerate(store):
        assert texts[index].tolist() == tokenizer.encode(text).ids
    assert 256 in texts[0].tolist()


def test_a_tweet_that_quotes_the_end_of_text_does_not_end_there(tokenizer: Any) -> None:
    store = TextStore()
    store.append(f"I wrote {END_OF_TEXT} once")
    texts = tokenize(store, tokenizer, 257)
    assert 257 in tokenizer.encode(store[0]).ids
    assert 257 not in texts[0].tolist()


def test_a_store_without_tokens_gives_a_file_of_ends(tokenizer: Any) -> None:
    store = TextStore()
    store.append("")
    blocks = TokenBlocks(tokenize(store, tokenizer, 257), np.array([0, 0]), 8)
    assert [block["input_ids"].tolist() for block in (blocks[0],)] == [[257, 257, 257]]
