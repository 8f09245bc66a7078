"""TokenLog: the output tokens of every slot on the host, and which slots the host has to examine.

It takes what captured steps report, a row of numbers per step, as arrays: a slot costs something by itself
only where it got its first token, ended, is watched, or waits for the host.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hgt_infer.cuda.slot_record import PROMPT_TOKEN

NEVER = np.iinfo(np.int64).max
NO_TOKEN = np.iinfo(np.int32).min  # no step reports it


@dataclass(slots=True)
class Seen:
    """What a block of steps brought.

    Attributes:
        num_sampled: output tokens that the device sampled.
        num_fed: tokens of prompts that it computed, but for the last ones, from which it sampled.
        listed: slots to examine: their first token, their end, or watched.
        waiting: what each slot reported that waits for the host (NOT_FINITE, or PROPOSED - a token id).
    """

    num_sampled: int = 0
    num_fed: int = 0
    listed: dict[int, None] = field(default_factory=dict)
    waiting: dict[int, int] = field(default_factory=dict)


class TokenLog:
    """The output of the sequence in each slot.

    Steps are numbered from the first that was ever launched. A slot is examined from the step on that its
    sequence entered before, until it ends or waits: what steps in flight report of it then is nothing.

    Args:
        num_slots: how many.
        max_length: most output tokens of a sequence.
    """

    def __init__(self, num_slots: int, max_length: int) -> None:
        self._first_steps = np.full(num_slots, NEVER)
        self._counts = np.zeros(num_slots, np.int64)  # tokens so far
        self._taken = [0] * num_slots  # of these, by take()
        self._limits = [0] * num_slots  # the count that ends a slot
        self._next_counts = np.zeros(num_slots, np.int64)  # the count that lists it
        self._end_ids = np.full(num_slots, NO_TOKEN, np.int32)
        self._is_watched = [False] * num_slots
        # One place more than tokens: a step writes behind the last one of every slot, whatever it reports.
        self._tokens = np.zeros((num_slots, max_length + 1), np.int32)
        self._places = self._tokens.reshape(-1)
        self._rows = np.arange(num_slots) * (max_length + 1)

    def enter(self, slot: int, *, max_tokens: int, end_token_id: int | None, is_watched: bool) -> None:
        """Begin a sequence's output; `resume` says from which step on.

        It ends at max_tokens, or with end_token_id. is_watched: list the slot for every token.
        """
        self._first_steps[slot] = NEVER
        self._counts[slot] = self._taken[slot] = 0
        self._limits[slot] = max_tokens
        self._next_counts[slot] = 1
        self._end_ids[slot] = NO_TOKEN if end_token_id is None else end_token_id
        self._is_watched[slot] = is_watched

    def resume(self, slot: int, first_step: int) -> None:
        """Examine a slot from a step on."""
        self._first_steps[slot] = first_step

    def leave(self, slot: int) -> None:
        """Examine a slot no more."""
        self._first_steps[slot] = NEVER

    def examine(self, first_step: int, reports: NDArray[np.int32]) -> Seen:
        """Take in the steps from first_step on: reports [steps, slots] of the first slots."""
        num_slots = reports.shape[1]
        counts, next_counts = self._counts[:num_slots], self._next_counts[:num_slots]
        end_ids, rows = self._end_ids[:num_slots], self._rows[:num_slots]
        is_active = self._first_steps[:num_slots] <= first_step
        seen = Seen()
        for report in reports:
            self._places[rows + counts] = report
            is_sampled = report >= 0
            is_sampled &= is_active
            counts += is_sampled
            num_sampled = int(np.count_nonzero(is_sampled))
            num_waiting = len(seen.waiting)
            seen.num_fed += int(np.count_nonzero(is_active)) - num_sampled
            seen.num_sampled += num_sampled
            is_touched = counts >= next_counts
            is_touched |= report == end_ids
            is_touched |= report < PROMPT_TOKEN
            is_touched &= is_active
            for slot in is_touched.nonzero()[0].tolist():
                value = int(report[slot])
                if value < PROMPT_TOKEN:
                    seen.waiting[slot] = value
                    continues = False
                else:
                    seen.listed[slot] = None
                    continues = self._continues(slot, value)
                if not continues:
                    is_active[slot] = False
                    self._first_steps[slot] = NEVER
            seen.num_fed -= len(seen.waiting) - num_waiting
        return seen

    def append(self, slot: int, token_id: int) -> bool:
        """Add a token that the host sampled for a slot that waits; return whether the sequence goes on."""
        self._tokens[slot, self._counts[slot]] = token_id
        self._counts[slot] += 1
        return self._continues(slot, token_id)

    def _continues(self, slot: int, token_id: int) -> bool:
        """Note when a slot that was listed is to be listed next; return whether it has not ended."""
        count, limit = int(self._counts[slot]), self._limits[slot]
        self._next_counts[slot] = count + 1 if self._is_watched[slot] else limit
        return count < limit and token_id != self._end_ids[slot]

    def take(self, slot: int) -> list[int]:
        """The tokens that the output of a slot has grown by since they were taken last."""
        first, self._taken[slot] = self._taken[slot], int(self._counts[slot])
        token_ids: list[int] = self._tokens[slot, first : self._taken[slot]].tolist()
        return token_ids

    def not_taken(self, slot: int) -> list[int]:
        """What take() would return."""
        token_ids: list[int] = self._tokens[slot, self._taken[slot] : self._counts[slot]].tolist()
        return token_ids
