"""Scheduler: which sequence runs in which slot, and when. It moves sequences and never sees an array.

Running sequences occupy slots 0 … len(running) - 1 without a gap, so that a batch is always a
consecutive range of the cache: the last one moves into a slot that comes free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from hgt_infer.outputs import TokenLogprobs
from hgt_infer.sequence import Request, Sequence

MAX_FED_TOKENS = 8
"""Longest prompt that is fed token by token beside running sequences instead of being prefilled.

The prompt alone decides: a prefill's rounding differs from a step's, and a request must not depend on
its company. On a CPU a prefill reads all the weights once more (14 to 19 ms for 3 to 8 tokens of GPT-2
124M on 2 cores), a row more in a running batch costs about 1 ms.
"""

MAX_PREFILL_TOKENS = 256
"""Most tokens of one prefill run; a longer prompt takes several runs."""


class Copy(NamedTuple):
    """The first `length` cache positions of slot `source`, and its settings, go to slot `target`."""

    source: int
    target: int
    length: int


@dataclass(frozen=True, slots=True)
class Batch:
    """One run: its sequences lie in consecutive slots, and each takes its next num_tokens tokens.

    A prefill only fills the cache (and reports the prompt's log-probabilities where asked); a step samples.
    copies happen first, in order; then admitted sequences' settings are written.
    """

    sequences: list[Sequence]
    num_tokens: int
    is_prefill: bool
    copies: list[Copy]
    admitted: list[Sequence]


@dataclass(slots=True)
class BatchOutput:
    """What a run gave.

    Attributes:
        token_ids: of a step, one per sequence; without meaning where a prompt is still being fed.
        logprobs, prompt_logprobs, errors: of the sequences that asked for them, or that failed.
    """

    token_ids: list[int]
    logprobs: list[tuple[Sequence, TokenLogprobs]] = field(default_factory=list)
    prompt_logprobs: list[tuple[Sequence, list[TokenLogprobs]]] = field(default_factory=list)
    errors: list[tuple[Sequence, BaseException]] = field(default_factory=list)


class Scheduler:
    """Gives free slots to the calls in turn: each turn is one sequence, in the order of the calls' arrival.

    A call that has had its turn goes to the end of the line while it has more; its own sequences run in
    their order. So one that asks for 500 samples delays another by a sequence at a time, not by 500.

    Args:
        num_slots: sequences that run at once.

    Attributes:
        line: calls with sequences that wait for a slot; the first one's turn is next.
        num_waiting: these sequences.
        running: sequences in slots, by slot.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.line: deque[Request] = deque()
        self.num_waiting = 0
        self.running: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        # The prompt of which each slot holds all but the last token, also after its sequence has ended.
        self._cached_prompts: list[tuple[int, ...] | None] = [None] * num_slots
        self._moves: list[Copy] = []

    @property
    def has_unfinished(self) -> bool:
        """Whether a sequence waits or runs."""
        return bool(self.line or self.running)

    def add(self, request: Request, sequences: Collection[Sequence]) -> None:
        """Put sequences behind those of their request; a new request goes to the end of the line."""
        if sequences and not request.waiting:
            self.line.append(request)
        for sequence in sequences:
            sequence.request = request
        request.waiting.extend(sequences)
        self.num_waiting += len(sequences)

    def cancel(self, request: Request) -> list[Sequence]:
        """Forget a request's sequences and return them; their slots are free for the next schedule()."""
        cancelled = list(request.waiting)
        if cancelled:
            self.line.remove(request)
            request.waiting.clear()
            self.num_waiting -= len(cancelled)
        running = [sequence for sequence in self.running if sequence.request is request]
        self._free(running)
        return cancelled + running

    def schedule(self) -> Batch:
        """Fill the free slots, then choose what runs: new prompts by themselves, or everyone's next token."""
        copies, self._moves = self._moves, []
        admitted: list[Sequence] = []
        if not self._prefilling:
            while self.line and len(self.running) < self.num_slots and self._enter(copies):
                admitted.append(self.running[-1])
        if self._prefilling:
            num_left = self._prefilling[0].num_prompt_left
            return Batch(list(self._prefilling), min(num_left, MAX_PREFILL_TOKENS), True, copies, admitted)
        return Batch(list(self.running), 1, False, copies, admitted)

    def _enter(self, copies: list[Copy]) -> bool:
        """Give the next free slot to the next sequence, or return False: it has to wait for a prefill.

        It enters in one of three ways: it copies its prompt from another slot, it is fed token by token, or
        it joins a prefill.
        """
        request, slot = self.line[0], len(self.running)
        sequence = request.waiting[0]
        prompt = sequence.prompt_token_ids
        if prompt in self._cached_prompts and not sequence.scores_prompt:
            sequence.num_computed = len(prompt) - 1
            if self._cached_prompts[slot] != prompt:
                source = self._cached_prompts.index(prompt)
                copies.append(Copy(source, slot, sequence.num_computed))
        elif len(prompt) > MAX_FED_TOKENS and not self._joins_prefill(sequence):
            return False
        elif len(prompt) > MAX_FED_TOKENS:
            self._prefilling.append(sequence)
        self._cached_prompts[slot] = prompt if sequence.has_cached_prompt else None
        sequence.slot = slot
        self.running.append(request.waiting.popleft())
        self.num_waiting -= 1
        self.line.popleft()
        if request.waiting:
            self.line.append(request)
        return True

    def _joins_prefill(self, sequence: Sequence) -> bool:
        """Whether a sequence starts a prefill, or fits one of equal lengths in the slots right before it.

        One whose prompt is being prefilled waits, to copy it.
        """
        others, num_tokens = self._prefilling, sequence.num_prompt_left
        return not others or (
            others[-1] is self.running[-1]
            and others[0].num_prompt_left == num_tokens
            and (len(others) + 1) * num_tokens <= MAX_PREFILL_TOKENS
            and (
                sequence.scores_prompt or all(s.prompt_token_ids != sequence.prompt_token_ids for s in others)
            )
        )

    def update(self, batch: Batch, output: BatchOutput) -> list[Sequence]:
        """Give each sequence what the run gave it, free the slots of those that end, and return these.

        One in output.errors is not returned, and keeps its slot: its request is to be cancelled.
        """
        for sequence, token_logprobs in output.logprobs:
            sequence.logprobs.append(token_logprobs)
        for sequence, prompt_logprobs in output.prompt_logprobs:
            sequence.prompt_logprobs.extend(prompt_logprobs)
        if batch.is_prefill:
            for sequence in batch.sequences:
                sequence.num_computed += batch.num_tokens
            finished = [sequence for sequence in batch.sequences if self._ends_with_prompt(sequence)]
            self._prefilling = [sequence for sequence in self._prefilling if not sequence.has_cached_prompt]
        else:
            finished = []
            failed = {sequence for sequence, _ in output.errors}
            for sequence, token_id in zip(batch.sequences, output.token_ids, strict=True):
                sequence.num_computed += 1
                if sequence.num_computed >= len(sequence.prompt_token_ids):
                    sequence.append(token_id)
                    if sequence.finish_reason is not None and sequence not in failed:
                        finished.append(sequence)
                elif self._ends_with_prompt(sequence):
                    finished.append(sequence)
        self._free(finished)
        return finished

    def _ends_with_prompt(self, sequence: Sequence) -> bool:
        """Note a prompt that is computed now; return whether the sequence was run for nothing more."""
        if not sequence.has_cached_prompt:
            return False
        self._cached_prompts[_slot(sequence)] = sequence.prompt_token_ids
        if sequence.params.max_tokens == 0:
            sequence.finish_reason = "length"
        return sequence.params.max_tokens == 0

    def _free(self, sequences: list[Sequence]) -> None:
        """Close each gap with the last running sequence; the last gap first, so that none moves in vain."""
        for sequence in sorted(sequences, key=_slot, reverse=True):
            slot = _slot(sequence)
            last = self.running.pop()
            if last is not sequence:
                self._moves.append(Copy(_slot(last), slot, last.num_computed))
                self._cached_prompts[slot] = self._cached_prompts[_slot(last)]
                self.running[slot] = last
                last.slot = slot
            sequence.slot = None
            if sequence in self._prefilling:
                self._prefilling.remove(sequence)


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
