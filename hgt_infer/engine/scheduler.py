"""Scheduler: which sequence of one device runs in which slot, and when. It never sees an array."""

from __future__ import annotations

import heapq

from hgt_infer.engine.batch import MAX_PREFILL_TOKENS, Batch, BatchOutput, Copy
from hgt_infer.engine.cached_prompts import CachedPrompts
from hgt_infer.engine.sequence import Request, Sequence
from hgt_infer.engine.waiting_queue import WaitingQueue

DEFAULT_MAX_FED_TOKENS = 8
"""Longest prompt that is fed token by token beside running sequences on a CPU instead of being prefilled.

The prompt alone decides: with ONNX Runtime's operators a prefill's rounding differs from a step's, and a
request must not depend on its company. A prefill reads all the weights once more (14 to 19 ms for 3 to 8
tokens of GPT-2 124M on 2 cores), a row more in a running batch costs about 1 ms.
"""


class Scheduler:
    """Admits waiting sequences to the free slots of one device, and chooses what runs.

    Args:
        num_slots: sequences that run at once.
        waiting: where they wait; None makes a queue of its own.
        max_fed_tokens: longest prompt that steps compute, a token each; longer ones, and those that are
            scored, are prefilled.
        closes_gaps: whether sequences move so that those of a step occupy slots 0 … n - 1.
        shares_prefills: whether prompts of equal length are prefilled in one run.
        mixes_prompts: whether a step computes pieces of prompts beside the next tokens of other sequences,
            for a runner that gives a token the same bits in either. Scored prompts are prefilled still.
    """

    def __init__(
        self,
        num_slots: int,
        waiting: WaitingQueue | None = None,
        *,
        max_fed_tokens: int = DEFAULT_MAX_FED_TOKENS,
        closes_gaps: bool = True,
        shares_prefills: bool = True,
        mixes_prompts: bool = False,
    ) -> None:
        self.num_slots = num_slots
        self.waiting = WaitingQueue() if waiting is None else waiting
        self._max_fed_tokens = max_fed_tokens
        self._closes_gaps = closes_gaps
        self._shares_prefills = shares_prefills
        self._mixes_prompts = mixes_prompts
        self._slots: list[Sequence | None] = [None] * num_slots
        self._free_slots = list(range(num_slots))  # a heap
        self._released: list[int] = []
        self._prefilling: list[Sequence] = []
        # Only prompts that were computed in the way of their length: a copy must not depend on company.
        self._cached_prompts = CachedPrompts(num_slots)

    @property
    def num_running(self) -> int:
        """Sequences in slots."""
        return self.num_slots - len(self._free_slots)

    @property
    def running(self) -> list[Sequence]:
        """Sequences in slots, in the order of these."""
        return [sequence for sequence in self._slots if sequence is not None]

    @property
    def has_unfinished(self) -> bool:
        """Whether a sequence waits or runs."""
        return self.num_running > 0 or self.waiting.num_waiting > 0

    def cancel(self, request: Request) -> list[Sequence]:
        """Forget a request's sequences and return them; their slots are free for the next schedule()."""
        running = [sequence for sequence in self.running if sequence.request is request]
        for sequence in running:
            self._free(sequence)
        return self.waiting.remove(request) + running

    def schedule(self) -> Batch | None:
        """Admit waiting sequences to the free slots, then choose: a prefill, or a step of all that run.

        Returns None where nothing runs: another device has taken what was waiting.
        """
        copies: list[Copy] = []
        admitted: list[Sequence] = []
        if not self._prefilling:
            while self._free_slots and (sequence := self.waiting.peek()) and self._admit(sequence, copies):
                admitted.append(self.waiting.pop())
        if self.num_running == 0:
            return None
        released = [slot for slot in dict.fromkeys(self._released) if self._slots[slot] is None]
        self._released.clear()
        if self._prefilling:
            num_tokens = min(self._prefilling[0].num_prompt_left, MAX_PREFILL_TOKENS)
            return Batch(list(self._prefilling), num_tokens, True, copies, admitted, released)
        if self._closes_gaps:
            self._close_gaps(copies)
        running = self.running
        num_scheduled_tokens = self._pieces(running) if self._mixes_prompts else None
        return Batch(running, 1, False, copies, admitted, released, num_scheduled_tokens)

    def _pieces(self, running: list[Sequence]) -> list[int]:
        """How many tokens of each sequence a step computes: one, and MAX_PREFILL_TOKENS more in all."""
        left, pieces = MAX_PREFILL_TOKENS, []
        for sequence in running:
            num_tokens = 1 + max(0, min(sequence.num_prompt_left, left))
            left -= num_tokens - 1
            pieces.append(num_tokens)
        return pieces

    def _admit(self, sequence: Sequence, copies: list[Copy]) -> bool:
        """Give the lowest free slot to a sequence, or return False: it has to wait for a prompt.

        Its prompt is copied from another slot, computed in steps, or prefilled.
        """
        slot, prompt = self._free_slots[0], sequence.prompt_token_ids
        sources = self._cached_prompts.slots_of(prompt)
        if sources and not sequence.scores_prompt:
            sequence.num_computed = len(prompt) - 1
            if slot not in sources:
                copies.append(Copy(next(iter(sources)), slot, sequence.num_computed))
        elif sequence.scores_prompt or (len(prompt) > self._max_fed_tokens and not self._mixes_prompts):
            if not self._joins_prefill(sequence, slot):
                return False
            self._prefilling.append(sequence)
        elif len(prompt) > self._max_fed_tokens and any(
            other.prompt_token_ids == prompt and not other.has_cached_prompt for other in self.running
        ):
            return False  # it will copy the prompt
        self._cached_prompts[slot] = prompt if sequence.has_cached_prompt else None
        heapq.heappop(self._free_slots)
        self._slots[slot], sequence.slot = sequence, slot
        return True

    def _joins_prefill(self, sequence: Sequence, slot: int) -> bool:
        """Whether a sequence starts a prefill, or fits one of equal lengths in the slots right before.

        One whose prompt is being prefilled waits, to copy it.
        """
        others, num_tokens = self._prefilling, sequence.num_prompt_left
        return not others or (
            self._shares_prefills
            and others[-1].slot == slot - 1
            and others[0].num_prompt_left == num_tokens
            and (len(others) + 1) * num_tokens <= MAX_PREFILL_TOKENS
            and (
                sequence.scores_prompt or all(s.prompt_token_ids != sequence.prompt_token_ids for s in others)
            )
        )

    def _close_gaps(self, copies: list[Copy]) -> None:
        """Move the last sequences into the free slots before them, the very last one first."""
        num_running = self.num_running
        outside = [sequence for sequence in self._slots[num_running:] if sequence is not None]
        if not outside:
            return
        for target in range(num_running):
            if self._slots[target] is None:
                sequence = outside.pop()
                source = _slot(sequence)
                copies.append(Copy(source, target, sequence.num_computed))
                self._cached_prompts[target] = self._cached_prompts[source]
                self._slots[source], self._slots[target] = None, sequence
                sequence.slot = target
        self._free_slots = list(range(num_running, self.num_slots))

    def launched(self, batch: Batch) -> None:
        """Note that a batch runs: what is scheduled next runs behind it, and finds its prompts computed."""
        if batch.is_prefill:
            for sequence in batch.sequences:
                sequence.num_computed += batch.num_tokens
                if sequence.has_cached_prompt:
                    self._prefilling.remove(sequence)
                    self._note_cached_prompt(sequence)

    def update(self, batch: Batch, output: BatchOutput) -> list[Sequence]:
        """Give each sequence what the run gave it, free the slots of those that end, and return these.

        One in output.errors is not returned, and keeps its slot: its request is to be cancelled. What comes
        for a sequence that has left its slot meanwhile is dropped.
        """
        for sequence, token_logprobs in output.logprobs:
            sequence.logprobs.append(token_logprobs)
        for sequence, prompt_logprobs in output.prompt_logprobs:
            sequence.prompt_logprobs.extend(prompt_logprobs)
        failed = {sequence for sequence, _ in output.errors}
        finished = []
        pieces = dict(zip(batch.sequences, batch.num_scheduled_tokens or (), strict=False))
        for sequence, token_ids in output.new_tokens:
            if sequence.slot is not None:
                self._append(sequence, token_ids, pieces.get(sequence, 1))
                if sequence.finish_reason is not None and sequence not in failed:
                    finished.append(sequence)
        if batch.is_prefill:
            for sequence in batch.sequences:
                if (
                    sequence.slot is not None
                    and sequence.params.max_tokens == 0
                    and sequence.has_cached_prompt
                ):
                    sequence.finish_reason = "length"  # no more than the prompt was asked for
                    finished.append(sequence)
        for sequence in finished:
            self._free(sequence)
        return finished

    def _append(self, sequence: Sequence, token_ids: list[int], num_tokens: int) -> None:
        """Note what a step gave: new tokens of the output, or num_tokens of the prompt in the cache."""
        if token_ids:
            if len(token_ids) == 1:
                sequence.append(token_ids[0])
            else:
                sequence.extend(token_ids)
            num_outputs = len(sequence.output_token_ids)
            sequence.num_computed = len(sequence.prompt_token_ids) + num_outputs - 1
        else:
            sequence.num_computed += num_tokens
        if self._cached_prompts[_slot(sequence)] is None and sequence.has_cached_prompt:
            self._note_cached_prompt(sequence)

    def _free(self, sequence: Sequence) -> None:
        slot = _slot(sequence)
        self._slots[slot], sequence.slot = None, None
        heapq.heappush(self._free_slots, slot)
        self._released.append(slot)
        if sequence in self._prefilling:
            self._prefilling.remove(sequence)

    def _note_cached_prompt(self, sequence: Sequence) -> None:
        """Let others copy a prompt that is computed now, unless it was prefilled only to be scored."""
        prompt = sequence.prompt_token_ids
        if len(prompt) > self._max_fed_tokens or not sequence.scores_prompt:
            self._cached_prompts[_slot(sequence)] = prompt


def _slot(sequence: Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot
