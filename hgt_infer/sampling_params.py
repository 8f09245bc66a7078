"""SamplingParams: how the tokens of one request are chosen. It checks itself; nothing is resolved here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hgt_infer.errors import ParameterError

MAX_SAMPLES = 16_384
"""Most samples that one request may ask for."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of one request; None leaves a setting to the checkpoint's own default.

    The filters run in transformers' order: min_tokens, temperature, top_k, top_p.

    Args:
        n: samples for each prompt, 1 … 16,384.
        temperature: ≥ 0; below 1e-5 is greedy, whatever the other settings say.
        top_k: keep the k likeliest tokens (and ties with the last of them); 0 is off. Up to 256 is
            sampled on the device, a larger one on the host, more slowly.
        top_p: keep the smallest set of likeliest tokens whose mass reaches top_p, in (0, 1]; 1 is off.
        max_tokens: most tokens to generate, ≥ 1. Generation also ends where the context is full.
        min_tokens: end-of-text is not sampled before this many tokens, ≥ 0.
        seed: 0 … 2**64 - 1. The same prompt, settings and seed give the same tokens, alone or in
            company. None draws one, which the output states.

    Raises:
        ParameterError: a value outside its range, or a pair that contradicts itself.

    >>> SamplingParams(n=5, top_p=0.95, seed=1).n
    5
    >>> SamplingParams(temperature=-1)
    Traceback (most recent call last):
    hgt_infer.errors.ParameterError: temperature must be a finite number >= 0; got -1
    """

    n: int = 1
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        check_int("n", self.n, 1, MAX_SAMPLES)
        if self.temperature is not None:
            check_number("temperature", self.temperature, "a finite number >= 0", lambda x: x >= 0)
        if self.top_k is not None:
            check_int("top_k", self.top_k, 0)
        if self.top_p is not None:
            check_number("top_p", self.top_p, "a number in (0, 1]", lambda x: 0 < x <= 1)
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1)
        if self.min_tokens is not None:
            check_int("min_tokens", self.min_tokens, 0)
        if self.seed is not None:
            check_int("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None and self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}); got {self.min_tokens}"
            )


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise ParameterError unless value is an integer (no bool) in low … high."""
    allowed = f"an integer >= {low}" if high is None else f"an integer in {low} … {high}"
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        raise ParameterError(f"{name} must be {allowed}; got {value!r}")


def check_number(name: str, value: Any, allowed: str, is_allowed: Any) -> None:
    """Raise ParameterError unless value is a finite int or float (no bool) that is_allowed accepts."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not is_allowed(value):
        raise ParameterError(f"{name} must be {allowed}; got {value!r}")
