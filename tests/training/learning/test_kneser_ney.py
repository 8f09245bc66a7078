"""Against a slow implementation that follows the formulas word by word."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.learning.kneser_ney import KneserNey

END, VOCAB_SIZE = 0, 7


class Slow:
    """Chen & Goodman's equations, by looking through all n-grams each time."""

    def __init__(self, texts: list[list[int]], order: int) -> None:
        self.order = order
        padded = [[END, *text, END] for text in texts]
        self.grams = [
            tuple(text[i + 1 - length : i + 1])
            for text in padded
            for i in range(1, len(text))
            for length in range(1, order + 1)
            if i + 1 >= length
        ]

    def count(self, gram: tuple[int, ...]) -> int:
        if len(gram) < self.order:
            longer = [other for other in self.grams if len(other) == len(gram) + 1]
            before = {other[0] for other in longer if other[1:] == gram}
            if before:
                return len(before)
        return self.grams.count(gram)

    def discount(self, length: int, count: int) -> float:
        of_length = {gram for gram in self.grams if len(gram) == length}
        n = Counter(self.count(gram) for gram in of_length)
        k = min(count, 3)
        if n[1] and n[k]:
            y = n[1] / (n[1] + 2 * n[2])
            discount = k - (k + 1) * y * n[k + 1] / n[k]
            if 0 < discount < k:
                return discount
        return k / 2

    def probability(self, context: tuple[int, ...], token: int) -> float:
        context = context[len(context) - min(len(context), self.order - 1) :]
        of_length = [gram for gram in self.grams if len(gram) == len(context) + 1]
        followers = {gram[-1] for gram in of_length if gram[:-1] == context}
        if context and not followers:
            return self.probability(context[1:], token)
        lower = self.probability(context[1:], token) if context else 1 / VOCAB_SIZE
        counts = {follower: self.count((*context, follower)) for follower in followers}
        total = sum(counts.values())
        if not total:
            return lower
        length = len(context) + 1
        taken = sum(self.discount(length, count) for count in counts.values())
        count = counts.get(token, 0)
        kept = count - self.discount(length, count) if count else 0.0
        return (kept + taken * lower) / total


TEXTS = st.lists(st.lists(st.integers(1, VOCAB_SIZE - 1), max_size=6), min_size=1, max_size=6)


@given(TEXTS, st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=5), st.integers(1, 4))
def test_probabilities_sum_to_one_after_any_context(
    texts: list[list[int]], context: list[int], order: int
) -> None:
    model = KneserNey(texts, order=order, end=END, vocab_size=VOCAB_SIZE)
    probabilities = [model.probability(tuple(context), token) for token in range(VOCAB_SIZE)]
    assert sum(probabilities) == pytest.approx(1)
    assert min(probabilities) > 0


@pytest.mark.parametrize("seed", range(4))
def test_it_is_equal_to_the_formulas(seed: int) -> None:
    draw = random.Random(seed)
    texts = [[draw.randrange(1, 5) for _ in range(draw.randrange(8))] for _ in range(12)]
    fast = KneserNey(texts, order=3, end=END, vocab_size=VOCAB_SIZE)
    slow = Slow(texts, order=3)
    for context in [(), (END,), (1,), (END, 2), (3, 1), (4, 4), (6, 1), (1, 2, 3)]:
        for token in range(VOCAB_SIZE):
            assert fast.probability(context, token) == pytest.approx(slow.probability(context, token))


def test_a_unigram_model_by_hand() -> None:
    # Counts: 1 twice, 2 once, end once. N1 = 2, N2 = 1: Y = 1/2, D1 = 1 - 2/4 = 1/2; D2 = 2 - 0 = 2 is out of
    # range, so 1. Of 4, (1 - 1/2) + (1 - 1/2) + (2 - 1) = 2 are kept; 2/4 go to the 4 tokens, 1/8 each.
    model = KneserNey([[1, 2, 1]], order=1, end=0, vocab_size=4)
    expected = {0: 0.5 / 4 + 1 / 8, 1: 1 / 4 + 1 / 8, 2: 0.5 / 4 + 1 / 8, 3: 1 / 8}
    assert {token: model.probability((), token) for token in range(4)} == pytest.approx(expected)


def test_the_loss_counts_every_token_and_the_end() -> None:
    model = KneserNey([[1, 2], [1, 3]], order=2, end=0, vocab_size=4)
    nats, num_tokens = model.loss([[1, 2], []])
    steps = [((0,), 1), ((1,), 2), ((2,), 0), ((0,), 0)]
    assert num_tokens == 4
    assert nats == pytest.approx(-sum(math.log(model.probability(*step)) for step in steps))


def test_more_context_helps_where_there_is_something_to_learn() -> None:
    texts = [[1, 2, 3, 4, 5, 6]] * 5 + [[6, 5, 4, 3, 2, 1]] * 5
    losses = [
        KneserNey(texts, order=order, end=END, vocab_size=VOCAB_SIZE).loss(texts)[0] for order in (1, 2, 3)
    ]
    assert losses[0] > losses[1] > losses[2]
