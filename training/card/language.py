"""Which language the tweets are in, for the card: told by py3langid, whose model comes with its package."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

MAX_TEXTS = 1000
MIN_LETTERS = 20  # of a text that tells its language
MIN_SHARE = 0.5


def detect_language(texts: Sequence[str]) -> str | None:
    """Return the ISO 639-1 code of the language of most texts; None where none has a majority.

    Args:
        texts: cleaned tweets; a thousand of them, evenly spread, are looked at.

    >>> detect_language(["The ferry was late again and nobody at the harbour was surprised."])
    'en'
    """
    from py3langid.langid import classify

    votes: Counter[str] = Counter()
    for text in texts[:: max(1, len(texts) // MAX_TEXTS)][:MAX_TEXTS]:
        if sum(map(str.isalpha, text)) >= MIN_LETTERS:
            votes[classify(text)[0]] += 1
    if not votes:
        return None
    language, number = votes.most_common(1)[0]
    return language if number / votes.total() > MIN_SHARE else None
