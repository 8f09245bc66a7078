"""Scheduler: which sequence runs in which slot, and when. It moves sequences and never sees an array.

Running sequences occupy slots 0 … len(running) - 1 without a gap, so that a batch is always a
consecutive range of the cache: the last one moves into a slot that comes free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from hgt_infer.sequence import Sequence

MAX_RIDING_TOKENS = 16
"""Longest prompt that is fed token by token beside running sequences instead of in a run of its own.

On a CPU a run of its own reads all the weights (about 18 ms for GPT-2 124M on 2 cores), a row more
in a running batch costs about 1 ms: up to this length riding along is cheaper.
"""


class Copy(NamedTuple):
    """The first `length` cache positions of slot `source`, and its settings, go to slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True)
class Batch:
    """One run: its sequences lie in consecutive slots.

    is_prefill: each row takes its whole prompt; otherwise each row takes its next token.
    copies happen first, in order; then admitted sequences' settings are written.
    """

    sequences: list[Sequence]
    is_prefill: bool
    copies: list[Copy]
    admitted: list[Sequence]


@dataclass
class Scheduler:
    """First come, first served over a fixed number of slots; a free slot is refilled before the next run."""

    num_slots: int
    max_prefill_tokens: int
    waiting: deque[Sequence] = field(default_factory=deque)
    running: list[Sequence] = field(default_factory=list)
    _moves: list[Copy] = field(default_factory=list)

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences behind those that wait."""
        self.waiting.extend(sequences)

    def clear(self) -> None:
        """Forget every sequence."""
        self.waiting.clear()
        self.running.clear()
        self._moves.clear()

    @property
    def has_unfinished(self) -> bool:
        """Whether a sequence waits or runs."""
        return bool(self.waiting or self.running)

    def schedule(self) -> Batch:
        """Fill the free slots, then choose what runs: new prompts by themselves, or everyone's next token.

        A waiting sequence enters in one of three ways: it copies the prompt of a running sibling, it
        rides along token by token, or it joins a prefill. Prefills are consecutive, so they end admission.
        """
        copies, self._moves = self._moves, []
        admitted: list[Sequence] = []
        prefill: list[Sequence] = []
        num_running = len(self.running)
        while self.waiting and len(self.running) < self.num_slots:
            sequence = self.waiting[0]
            prompt = sequence.prompt_token_ids
            sibling = next((s for s in self.running if s.prompt_token_ids == prompt), None)
            if sibling is not None and not sibling.has_cached_prompt:
                break  # its turn comes as soon as the sibling's prompt is in the cache
            if sibling is not None or (num_running and len(prompt) <= MAX_RIDING_TOKENS):
                if prefill:
                    break
                if sibling is not None:
                    assert sibling.slot is not None
                    sequence.num_computed = len(prompt) - 1
                    copies.append(Copy(sibling.slot, len(self.running), sequence.num_computed))
            elif self._fits(prefill, sequence):
                prefill.append(sequence)
            else:
                break
            sequence.slot = len(self.running)
            self.running.append(self.waiting.popleft())
            admitted.append(sequence)
        return Batch(prefill or list(self.running), bool(prefill), copies, admitted)

    def _fits(self, prefill: list[Sequence], sequence: Sequence) -> bool:
        """Whether the padded prompts stay within the limit; one prompt alone always may."""
        longest = max(len(s.prompt_token_ids) for s in [*prefill, sequence])
        return not prefill or (len(prefill) + 1) * longest <= self.max_prefill_tokens

    def update(self, batch: Batch, token_ids: list[int]) -> list[Sequence]:
        """Give each sequence its sampled token, free the slots of those that end, and return these."""
        finished = []
        for sequence, token_id in zip(batch.sequences, token_ids, strict=True):
            sequence.num_computed += len(sequence.prompt_token_ids) if batch.is_prefill else 1
            if sequence.num_computed < len(sequence):
                continue  # it still feeds its prompt: what was sampled means nothing
            sequence.append(token_id)
            if sequence.finish_reason is not None:
                finished.append(sequence)
        for sequence in finished:
            self._free(sequence)
        return finished

    def _free(self, sequence: Sequence) -> None:
        """Close the gap that a sequence leaves with the last running one."""
        assert sequence.slot is not None
        last = self.running.pop()
        if last is not sequence:
            assert last.slot is not None
            self._moves.append(Copy(last.slot, sequence.slot, last.num_computed))
            self.running[sequence.slot] = last
            last.slot = sequence.slot
        sequence.slot = None
