"""A runner without a model: which tokens lie in each slot."""

from __future__ import annotations

from hgt_infer.engine.batch import MAX_PREFILL_TOKENS, Batch, BatchOutput
from hgt_infer.engine.sequence import Sequence


def tokens_of(sequence: Sequence) -> list[int]:
    return [*sequence.prompt_token_ids, *sequence.output_token_ids]


class CacheModel:
    """What a runner would do: which tokens lie in each slot. Checks that every run is possible."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[list[int]] = [[] for _ in range(num_slots)]

    def run(self, batch: Batch, token_id: int = 1) -> BatchOutput:
        for source, target, length in batch.copies:
            assert len(self.slots[source]) >= length
            self.slots[target] = self.slots[source][:length]
        first = batch.sequences[0].slot
        assert first is not None
        assert [s.slot for s in batch.sequences] == list(range(first, first + len(batch.sequences)))
        assert batch.is_prefill or batch.num_tokens == 1
        assert 1 <= batch.num_tokens * (len(batch.sequences) if batch.is_prefill else 1) <= MAX_PREFILL_TOKENS
        assert sum(pieces_of(batch)) <= MAX_PREFILL_TOKENS + len(batch.sequences)
        for sequence, num_tokens in zip(batch.sequences, pieces_of(batch), strict=True):
            assert sequence.slot is not None
            stop = sequence.num_computed + num_tokens
            assert stop <= len(tokens_of(sequence))
            cached = self.slots[sequence.slot][: sequence.num_computed]
            assert cached == tokens_of(sequence)[: sequence.num_computed], "another sequence's tokens"
            if batch.is_prefill:
                # Several rows only from position 0, and the token that samples is left to a step.
                assert sequence.num_computed == 0 or len(batch.sequences) == 1
                assert stop < len(sequence.prompt_token_ids)
            else:
                assert first == 0
                assert sequence.next_input_id == tokens_of(sequence)[sequence.num_computed]
            self.slots[sequence.slot] = tokens_of(sequence)[:stop]
        return sampled(batch, [token_id] * len(batch.sequences))


def pieces_of(batch: Batch) -> list[int]:
    """How many tokens of each sequence a batch computes."""
    return batch.num_scheduled_tokens or [batch.num_tokens] * len(batch.sequences)


def sampled(batch: Batch, token_ids: list[int]) -> BatchOutput:
    """What a runner returns that samples these: nothing for a row whose prompt goes on."""
    if batch.is_prefill:
        return BatchOutput()
    new_tokens = [
        (sequence, [token_id] if sequence.num_computed + count >= len(sequence.prompt_token_ids) else [])
        for sequence, count, token_id in zip(batch.sequences, pieces_of(batch), token_ids, strict=True)
    ]
    return BatchOutput(new_tokens, num_sampled=sum(len(ids) for _, ids in new_tokens))
