"""Log-probabilities of tokens and prompts, in float64, out of the model's own logits."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
from numpy.typing import NDArray

from hgt_infer.engine.sequence import Sequence
from hgt_infer.outputs import TokenLogprobs


def token_logprobs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogprobs:
    """The log-probability of a token and of the num_top likeliest ones; logits [V], the model's own.

    The likeliest come first, of equally likely ones that with the lowest id.

    >>> token_logprobs(np.zeros(4, np.float32), 3, 1)
    TokenLogprobs(token_id=3, logprob=-1.3862943611198906, top=((0, -1.3862943611198906),))
    """
    peak = logits.max()
    log_total = np.log(np.exp(logits.astype(np.float64) - peak).sum())

    def logprob(token_id: int) -> float:
        return float(np.float64(logits[token_id]) - peak - log_total)

    top = _largest(logits, min(num_top, len(logits))) if num_top else []
    return TokenLogprobs(token_id, logprob(token_id), tuple((id_, logprob(id_)) for id_ in top))


def num_scored(sequences: Seq[Sequence], start: int, stop: int) -> int:
    """How many of the prompt tokens start … stop - 1, the last ones, must give logits for scores."""
    firsts = [max(start, s.num_unscored) for s in sequences if s.scores_prompt]
    return max(0, stop - min(firsts, default=stop))


def score_prompts(
    sequences: Seq[Sequence], logits: NDArray[np.float32], stop: int
) -> list[tuple[Sequence, list[TokenLogprobs]]]:
    """Log-probabilities of prompts' tokens that are asked for; logits [B · P, V] of the P before `stop`."""
    start = stop - len(logits) // len(sequences)
    return [
        (
            sequence,
            [
                token_logprobs(row, sequence.prompt_token_ids[position + 1], num_top)
                for position, row in enumerate(rows, start)
                if position >= sequence.num_unscored
            ],
        )
        for sequence, rows in zip(sequences, np.split(logits, len(sequences)), strict=True)
        if sequence.scores_prompt and (num_top := sequence.params.prompt_logprobs) is not None
    ]


def _largest(values: NDArray[np.float32], count: int) -> list[int]:
    """Indices of the count largest values in descending order, of equal ones the lowest index first."""
    last = np.partition(values, -count)[-count]
    above = np.flatnonzero(values > last)
    ids = np.concatenate([above, np.flatnonzero(values == last)[: count - len(above)]])
    indices: list[int] = ids[np.argsort(-values[ids], kind="stable")].tolist()
    return indices
