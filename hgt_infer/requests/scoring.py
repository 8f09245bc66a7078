"""Scoring: texts as sequences that generate nothing, long ones as several windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hgt_infer.engine.engine import Engine
from hgt_infer.engine.sequence import Sequence, SequenceParams
from hgt_infer.outputs import Score
from hgt_infer.requests.prompts import ScoredText
from hgt_infer.requests.submission import run

_PARAMS = SequenceParams(max_tokens=0, seed=0, prompt_logprobs=0)


def score_texts(
    engine: Engine, texts: list[ScoredText], *, max_length: int, stride: int
) -> Iterator[tuple[int, Score]]:
    """Score texts and yield (index, score) as each one is done.

    Texts of equal length share a run, so they are taken in the order of their lengths.

    Args:
        engine: where they run.
        texts: what to score.
        max_length: tokens of a window, ≥ 2.
        stride: tokens from the start of a window to that of the next, 1 … max_length - 1.
    """
    order = sorted(range(len(texts)), key=lambda index: len(texts[index].token_ids))
    logprobs: dict[int, list[float | None]] = {}
    num_left: dict[int, int] = {}

    def sequences() -> Iterator[Sequence]:
        for index in order:
            token_ids = texts[index].token_ids
            logprobs[index] = [None] * len(token_ids)
            num_left[index] = len(token_ids) - texts[index].num_given
            for start, stop, num_unscored in windows(
                len(token_ids), texts[index].num_given, max_length, stride
            ):
                yield Sequence(
                    token_ids[start:stop],
                    _PARAMS,
                    sample_index=start,
                    prompt_index=index,
                    num_unscored=num_unscored,
                )

    for sequence in run(engine, sequences()):
        index = sequence.prompt_index
        first = sequence.sample_index + sequence.num_unscored + 1
        found = [token.logprob for token in sequence.prompt_logprobs]
        logprobs[index][first : first + len(found)] = found
        num_left[index] -= len(found)
        if num_left[index] == 0:
            text = texts[index]
            yield index, Score(text.text, text.token_ids, tuple(logprobs.pop(index)))


def windows(num_tokens: int, num_given: int, max_length: int, stride: int) -> Iterable[tuple[int, int, int]]:
    """Cover num_tokens tokens by windows of at most max_length: (start, stop, num_unscored) each.

    Every token behind the first num_given is scored once, in the first window that has it; num_unscored is
    the number of the window's positions whose next token is not scored there. A scored token has at
    least max_length - stride tokens of context, where the text has as many before it.

    >>> list(windows(num_tokens=10, num_given=1, max_length=6, stride=3))
    [(0, 6, 0), (3, 9, 2), (6, 10, 2)]
    """
    next_scored = num_given
    for start in range(0, num_tokens, stride):
        stop = min(start + max_length, num_tokens)
        if stop > next_scored:
            yield start, stop, next_scored - 1 - start
            next_scored = stop
        if stop == num_tokens:
            return
