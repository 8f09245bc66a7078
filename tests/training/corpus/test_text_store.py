from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.corpus.text_store import TextStore


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_come_back_as_they_went_in(texts: list[str]) -> None:
    store = TextStore()
    assert [store.append(text) for text in texts] == list(range(len(texts)))
    assert list(store) == texts
    assert store.lengths.tolist() == [len(text) for text in texts]


def test_reading_and_appending_take_turns() -> None:
    store = TextStore()
    for number in range(3_000):
        assert store.append(f"text {number}") == number
        assert store[number // 2] == f"text {number // 2}"


@pytest.mark.parametrize("index", [-1, 1])
def test_an_index_out_of_range_is_an_error(index: int) -> None:
    store = TextStore()
    store.append("fog")
    with pytest.raises(IndexError, match=f"index is {index}, expected 0 to 0"):
        store[index]
