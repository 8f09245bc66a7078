"""An n-gram model of token ids with modified Kneser-Ney smoothing: what a language model has to beat.

Interpolated, with the discounts of Chen & Goodman, "An empirical study of smoothing techniques for language
modeling" (1998), section 3. Texts and tokenizers are others' matter.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

MAX_COUNT = 3  # counts from here on share a discount
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # of counts 1, 2, 3 and more, where the counts of counts give none

Gram = tuple[int, ...]


class KneserNey:
    """Probabilities of each token of a text given up to `order` - 1 tokens before it.

    A text is its tokens with `end` before and after them; no context reaches beyond its beginning. Below the
    unigrams is the uniform distribution over the vocabulary, so that no token is impossible and all sum to 1.

    Args:
        texts: token ids of each training text, without `end`.
        order: n of the n-grams, ≥ 1.
        end: the id of <|endoftext|>.
        vocab_size: ids are 0 … vocab_size - 1.

    >>> model = KneserNey([[1, 2], [1, 3]], order=2, end=0, vocab_size=4)
    >>> round(sum(model.probability((1,), token) for token in range(4)), 9)
    1.0
    >>> model.probability((1,), 2) > model.probability((2,), 1)
    True
    """

    def __init__(self, texts: Iterable[Sequence[int]], *, order: int, end: int, vocab_size: int) -> None:
        self._order = order
        self._end = end
        self._vocab_size = vocab_size
        counts: list[Counter[Gram]] = [Counter() for _ in range(order)]  # by length - 1
        for text in texts:
            tokens = (end, *text, end)
            for i in range(1, len(tokens)):
                for length in range(1, min(order, i + 1) + 1):
                    counts[length - 1][tokens[i + 1 - length : i + 1]] += 1
        self._levels = [_Level(_continuations(counts, length)) for length in range(1, order + 1)]

    def probability(self, context: Gram, token: int) -> float:
        """Return the probability of a token after a context; of a longer one its end counts."""
        probability = 1 / self._vocab_size
        for length, level in enumerate(self._levels):  # from the unigrams up
            if length > len(context):
                break
            known = level.contexts.get(context[len(context) - length :])
            if known is None:  # nor is a longer context known
                break
            probability = known.kept(token, level.discounts) + known.left(level.discounts) * probability
        return probability

    def loss(self, texts: Iterable[Sequence[int]]) -> tuple[float, int]:
        """Return the negative log-likelihood of the texts, in nats, and their tokens with each `end`."""
        nats, num_tokens = 0.0, 0
        for text in texts:
            tokens = (self._end, *text, self._end)
            for i in range(1, len(tokens)):
                nats -= math.log(self.probability(tokens[max(0, i + 1 - self._order) : i], tokens[i]))
                num_tokens += 1
        return nats, num_tokens


class _Context:
    """What follows one context, and how often."""

    __slots__ = ("counts", "num_of_count", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.num_of_count = [0] * MAX_COUNT  # tokens seen once, twice, three times or more

    def kept(self, token: int, discounts: Sequence[float]) -> float:
        count = self.counts.get(token, 0)
        return (count - discounts[min(count, MAX_COUNT) - 1]) / self.total if count else 0.0

    def left(self, discounts: Sequence[float]) -> float:
        taken = sum(n * discount for n, discount in zip(self.num_of_count, discounts, strict=True))
        return taken / self.total


class _Level:
    """The n-grams of one length, by their contexts."""

    def __init__(self, counts: Counter[Gram]) -> None:
        self.contexts: dict[Gram, _Context] = defaultdict(_Context)
        for gram, count in counts.items():
            context = self.contexts[gram[:-1]]
            context.counts[gram[-1]] = count
            context.total += count
            context.num_of_count[min(count, MAX_COUNT) - 1] += 1
        self.contexts.default_factory = None
        self.discounts = _discounts(counts)


def _continuations(counts: Sequence[Counter[Gram]], length: int) -> Counter[Gram]:
    """Return for each n-gram how many tokens it was seen after; the longest ones' own counts.

    An n-gram at the beginning of a text has nothing before it: there its own count stands.
    """
    if length == len(counts):
        return counts[-1]
    continuations: Counter[Gram] = Counter(gram[1:] for gram in counts[length])
    for gram, count in counts[length - 1].items():
        if gram not in continuations:
            continuations[gram] = count
    return continuations


def _discounts(counts: Counter[Gram]) -> tuple[float, ...]:
    """Return the discounts: n - (n + 1) · Y · N(n + 1) / N(n) for count n, with Y = N1 / (N1 + 2 · N2)."""
    number = Counter(count for count in counts.values() if count <= MAX_COUNT + 1)
    discounts = []
    for n, fallback in enumerate(FALLBACK_DISCOUNTS, start=1):
        discount = fallback
        if number[1] and number[n]:
            y = number[1] / (number[1] + 2 * number[2])
            discount = n - (n + 1) * y * number[n + 1] / number[n]
        discounts.append(discount if 0 < discount < n else fallback)
    return tuple(discounts)
