"""Stats: what an engine has done so far, and the counters that its thread keeps for it.

Counters only: when something happens, and what to do about it, is `engine`'s.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

_MIN_S = 1e-5
_MAX_S = 1e3
_RATIO = 1.05**2  # of a bucket's ends; 5 % lie between its geometric middle and either
_LOG_RATIO = math.log(_RATIO)
_NUM_BUCKETS = math.ceil(math.log(_MAX_S / _MIN_S) / _LOG_RATIO)
_BUCKETS_PER_BOUND = 8  # of a Histogram


@dataclass(frozen=True, slots=True)
class Histogram:
    """How long something took, each time: percentiles, and what Prometheus makes a histogram of.

    Percentiles are within 5 % of the exact ones (nearest rank) from 10 µs to 1,000 s; what is beyond counts
    as these.

    Attributes:
        p50, p90, p99: what 50, 90 and 99 % of the times do not exceed, in seconds; None where count is 0.
        count: how many times there are.
        sum_s: their sum in seconds.
        cumulative: (bound in seconds, how many times are at most that), bounds ascending, from 10 µs to
            1,000 s, each 2.2 times the one before.
    """

    p50: float | None
    p90: float | None
    p99: float | None
    count: int
    sum_s: float
    cumulative: tuple[tuple[float, int], ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What a generator has done since it was made.

    Attributes:
        running: sequences in a slot now.
        waiting: sequences that wait for a slot now.
        finished, cancelled, failed: sequences that ended by themselves, by their caller, by an error.
        prompt_tokens: tokens of prompts that were computed; what samples of one prompt share counts once.
        generated_tokens: tokens that were sampled.
        prefill_s: seconds in runs that compute prompts only.
        decode_s: seconds in steps, which compute one token of each running sequence.
        steps: how many steps there were.
        wasted_rows: rows that ran on behind the end of their sequences, over all steps: on CUDA tokens are
            looked at a few steps late; 0 on a CPU.
        occupancy: mean share of the slots that hold a sequence in a step, 0 … 1; None before the first.
        occupancy_while_waiting: the same over the steps during which a sequence waited for a slot.
        time_to_first_token_s: from a sequence's submission to its first token.
        inter_token_s: between two tokens of a sequence.
    """

    running: int
    waiting: int
    finished: int
    cancelled: int
    failed: int
    prompt_tokens: int
    generated_tokens: int
    prefill_s: float
    decode_s: float
    steps: int
    wasted_rows: int
    occupancy: float | None
    occupancy_while_waiting: float | None
    time_to_first_token_s: Histogram
    inter_token_s: Histogram


class Statistics:
    """Counts what `Stats` reports, in constant memory.

    A lock is held during each call, so that any thread can take a snapshot while another one records: a
    snapshot has all of a record or nothing of it.

    Example:
        >>> statistics = Statistics()
        >>> statistics.record_step(0.1, num_rows=3, num_slots=4, is_anyone_waiting=False)
        >>> statistics.record_tokens(0.1, 3)
        >>> stats = statistics.snapshot(running=3, waiting=0)
        >>> stats.generated_tokens, stats.occupancy, stats.occupancy_while_waiting
        (3, 0.75, None)
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finished = self._cancelled = self._failed = 0
        self._prompt_tokens = self._generated_tokens = 0
        self._prefill_s = self._decode_s = 0.0
        self._steps = self._rows = self._slots = self._wasted_rows = 0
        self._rows_while_waiting = self._slots_while_waiting = 0
        self._first_token_counts = [0] * _NUM_BUCKETS
        self._inter_token_counts = [0] * _NUM_BUCKETS
        self._first_token_sum_s = self._inter_token_sum_s = 0.0

    def record_prefill(self, seconds: float, num_tokens: int) -> None:
        """A run computed num_tokens tokens of prompts and sampled none."""
        with self._lock:
            self._prefill_s += seconds
            self._prompt_tokens += num_tokens

    def record_step(
        self,
        seconds: float,
        *,
        num_steps: int = 1,
        num_rows: int,
        num_slots: int,
        is_anyone_waiting: bool,
        num_prompt_tokens: int = 0,
        num_wasted: int = 0,
    ) -> None:
        """Steps computed one token of each of num_rows sequences; num_prompt_tokens of all were a prompt's.

        num_wasted rows had ended. The tokens that were sampled are record_first_token's and record_tokens'.
        """
        with self._lock:
            self._decode_s += seconds
            self._prompt_tokens += num_prompt_tokens
            self._steps += num_steps
            self._wasted_rows += num_wasted
            self._rows += num_rows * num_steps
            self._slots += num_slots * num_steps
            if is_anyone_waiting:
                self._rows_while_waiting += num_rows * num_steps
                self._slots_while_waiting += num_slots * num_steps

    def record_first_token(self, seconds: float) -> None:
        """A sequence got its first token, this long after its submission."""
        bucket = _bucket(seconds)
        with self._lock:
            self._generated_tokens += 1
            self._first_token_counts[bucket] += 1
            self._first_token_sum_s += seconds

    def record_tokens(self, gap_s: float, count: int) -> None:
        """`count` sequences got a token each that is not their first, gap_s after the one before."""
        bucket = _bucket(gap_s)
        with self._lock:
            self._generated_tokens += count
            self._inter_token_counts[bucket] += count
            self._inter_token_sum_s += gap_s * count

    def record_finished(self, count: int) -> None:
        """`count` sequences ended by themselves."""
        with self._lock:
            self._finished += count

    def record_cancelled(self, count: int) -> None:
        """`count` sequences were cancelled by their caller."""
        with self._lock:
            self._cancelled += count

    def record_failed(self, count: int) -> None:
        """`count` sequences ended with an error."""
        with self._lock:
            self._failed += count

    def snapshot(self, running: int, waiting: int) -> Stats:
        """Return everything so far.

        Args:
            running: sequences in a slot now.
            waiting: sequences that wait for a slot now.
        """
        with self._lock:
            return Stats(
                running=running,
                waiting=waiting,
                finished=self._finished,
                cancelled=self._cancelled,
                failed=self._failed,
                prompt_tokens=self._prompt_tokens,
                generated_tokens=self._generated_tokens,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                steps=self._steps,
                wasted_rows=self._wasted_rows,
                occupancy=self._rows / self._slots if self._slots else None,
                occupancy_while_waiting=(
                    self._rows_while_waiting / self._slots_while_waiting
                    if self._slots_while_waiting
                    else None
                ),
                time_to_first_token_s=_histogram(self._first_token_counts, self._first_token_sum_s),
                inter_token_s=_histogram(self._inter_token_counts, self._inter_token_sum_s),
            )


def _bucket(seconds: float) -> int:
    """Which bucket a time is in: bucket i is from _MIN_S · _RATIO^i to _MIN_S · _RATIO^(i+1)."""
    if seconds <= _MIN_S:
        return 0
    return min(int(math.log(seconds / _MIN_S) / _LOG_RATIO), _NUM_BUCKETS - 1)


def _histogram(counts: list[int], sum_s: float) -> Histogram:
    sums = [*accumulate(counts)]
    cumulative = [
        (_MIN_S * _RATIO ** (bucket + 1), sums[bucket])
        for bucket in range(_BUCKETS_PER_BOUND - 1, _NUM_BUCKETS, _BUCKETS_PER_BOUND)
    ]
    p50, p90, p99 = (_percentile(sums, percent) for percent in (50, 90, 99))
    return Histogram(p50, p90, p99, sums[-1], sum_s, tuple(cumulative))


def _percentile(sums: list[int], percent: int) -> float | None:
    """The middle of the first bucket up to which at least `percent` % of all times lie."""
    if sums[-1] == 0:
        return None
    rank = -(-sums[-1] * percent // 100)  # ceil, in integers
    return _MIN_S * float(_RATIO ** (bisect_left(sums, rank) + 0.5))
