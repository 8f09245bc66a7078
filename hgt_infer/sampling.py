"""Random numbers of a sequence, and exact sampling on the host for the rows that the graph leaves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRAPH_UNIFORMS = 4
"""Uniforms per step that the graph takes, a candidate each; one more is the host's."""

UNIFORMS_PER_STEP = GRAPH_UNIFORMS + 1

GRAPH_MAX_TOP_K = 256
"""Widest top_k that the graph samples itself: CUDA's TopK is fast up to here."""


def uniforms(seed: int, sample_index: int, num_steps: int) -> NDArray[np.float32]:
    """The random numbers of one sequence, [num_steps, UNIFORMS_PER_STEP] in [0, 1).

    They depend on the seed, the sample's index and the step alone. Generator: Philox4x64-10 (Salmon et
    al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed by (seed, sample index), whose raw
    output NumPy guarantees to keep; the upper 24 bits of each word, all that a float32 holds.

    >>> bool((uniforms(1, 0, 10)[:4] == uniforms(1, 0, 4)).all())
    True
    """
    stream = np.random.Philox(key=np.array([seed, sample_index], dtype=np.uint64))
    words = stream.random_raw(num_steps * UNIFORMS_PER_STEP)
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(num_steps, -1)


def filtered_probs(
    logits: NDArray[np.float32], *, temperature: float, top_k: int, top_p: float
) -> NDArray[np.float64]:
    """The distribution [V] that a row is sampled from; logits [V].

    temperature > 0; top_k 0 is off; top_p >= 1 is off. Order and borders as in transformers: ties with
    the k-th logit stay; a token stays while the mass of the tokens before it is below top_p.
    """
    scaled = logits.astype(np.float64) / temperature
    if 0 < top_k < len(scaled):
        kth = np.partition(scaled, -top_k)[-top_k]
        scaled = np.where(scaled < kth, -np.inf, scaled)
    probs: NDArray[np.float64] = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    if top_p < 1:
        order = np.argsort(-probs, kind="stable")
        descending = probs[order]
        mass_before = np.cumsum(descending) - descending
        probs[order[mass_before >= top_p]] = 0.0
        probs /= probs.sum()
    return probs


def sample_row(
    logits: NDArray[np.float32], uniform: float, *, temperature: float, top_k: int, top_p: float
) -> int:
    """Draw one token id from a row of logits [V] by inverse CDF; uniform in [0, 1)."""
    probs = filtered_probs(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    support = np.flatnonzero(probs)
    cumulative = np.cumsum(probs[support])
    return int(support[np.searchsorted(cumulative, uniform * cumulative[-1], side="right")])
