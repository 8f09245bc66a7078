"""The scheduler alone: admission, slots, copies and the end of sequences."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hgt_infer.scheduler import MAX_RIDING_TOKENS, Batch, Copy, Scheduler
from hgt_infer.sequence import Sequence, SequenceParams

EOS = 99


def make(prompt: tuple[int, ...], max_tokens: int = 3, index: int = 0) -> Sequence:
    params = SequenceParams(1.0, 0, 1.0, max_tokens, 0, frozenset([EOS]), seed=0)
    return Sequence(prompt, params, index)


class CacheModel:
    """What a runner would do: which tokens lie in each slot. Checks that every run is possible."""

    def __init__(self, num_slots: int) -> None:
        self.slots: list[list[int]] = [[] for _ in range(num_slots)]

    def run(self, batch: Batch) -> None:
        for source, target, length in batch.copies:
            assert len(self.slots[source]) >= length
            self.slots[target] = self.slots[source][:length]
        first = batch.sequences[0].slot
        assert first is not None
        assert [s.slot for s in batch.sequences] == list(range(first, first + len(batch.sequences)))
        for sequence in batch.sequences:
            assert sequence.slot is not None
            tokens = [*sequence.prompt_token_ids, *sequence.output_token_ids]
            if batch.is_prefill:
                assert sequence.num_computed == 0
                self.slots[sequence.slot] = list(sequence.prompt_token_ids)
            else:
                cached = self.slots[sequence.slot][: sequence.num_computed]
                assert cached == tokens[: sequence.num_computed], "the slot holds another sequence's tokens"
                assert sequence.next_input_id == tokens[sequence.num_computed]
                self.slots[sequence.slot] = [*cached, sequence.next_input_id]


def run_to_end(scheduler: Scheduler, token_id: int = 1) -> list[Batch]:
    cache, batches = CacheModel(scheduler.num_slots), []
    while scheduler.has_unfinished:
        batch = scheduler.schedule()
        batches.append(batch)
        cache.run(batch)
        scheduler.update(batch, [token_id] * len(batch.sequences))
    return batches


def test_prompts_that_wait_for_an_idle_engine_are_prefilled_together() -> None:
    scheduler = Scheduler(num_slots=4, max_prefill_tokens=100)
    sequences = [make((i, i)) for i in range(3)]
    scheduler.add(sequences)
    batch = scheduler.schedule()
    assert batch.is_prefill
    assert batch.sequences == batch.admitted == sequences


def test_a_prefill_stays_within_its_limit_of_padded_tokens() -> None:
    scheduler = Scheduler(num_slots=4, max_prefill_tokens=10)
    scheduler.add([make((1,) * 4), make((2,) * 5), make((3,) * 5)])
    assert [len(s.prompt_token_ids) for s in scheduler.schedule().sequences] == [4, 5]


def test_one_prompt_above_the_limit_is_prefilled_alone() -> None:
    scheduler = Scheduler(num_slots=4, max_prefill_tokens=10)
    scheduler.add([make((1,) * 30), make((2,) * 30)])
    assert len(scheduler.schedule().sequences) == 1


def test_a_freed_slot_goes_to_the_next_waiting_sequence() -> None:
    scheduler = Scheduler(num_slots=1, max_prefill_tokens=10)
    first, second = make((1,), max_tokens=1), make((2,), max_tokens=1)
    scheduler.add([first, second])
    batch = scheduler.schedule()
    assert scheduler.update(batch, [5]) == [first]
    assert first.slot is None
    assert scheduler.schedule().sequences == [second]
    assert second.slot == 0


def test_a_short_prompt_rides_along_with_running_sequences() -> None:
    scheduler = Scheduler(num_slots=2, max_prefill_tokens=100)
    running = make((1, 2, 3), max_tokens=10)
    scheduler.add([running])
    scheduler.update(scheduler.schedule(), [7])
    rider = make((4, 5, 6))
    scheduler.add([rider])
    fed = []
    for _ in range(3):
        batch = scheduler.schedule()
        assert not batch.is_prefill
        fed.append(rider.next_input_id)
        scheduler.update(batch, [8, 8])
    assert fed == [4, 5, 6]
    assert rider.output_token_ids == [8]  # what was sampled while it fed its prompt is dropped
    assert running.output_token_ids == [7, 8, 8, 8]


def test_a_long_prompt_is_prefilled_beside_running_sequences() -> None:
    scheduler = Scheduler(num_slots=2, max_prefill_tokens=100)
    scheduler.add([make((1,), max_tokens=10)])
    scheduler.update(scheduler.schedule(), [7])
    long = make((2,) * (MAX_RIDING_TOKENS + 1))
    scheduler.add([long])
    batch = scheduler.schedule()
    assert batch.is_prefill
    assert batch.sequences == [long]
    assert long.slot == 1


def test_siblings_copy_the_prompt_instead_of_computing_it() -> None:
    scheduler = Scheduler(num_slots=4, max_prefill_tokens=1000)
    prompt = (1,) * 50
    scheduler.add([make(prompt, index=i) for i in range(6)])
    batches = run_to_end(scheduler)
    assert [len(b.sequences) for b in batches if b.is_prefill] == [1]
    copies = [copy for b in batches for copy in b.copies if copy.length == 49]
    assert len(copies) >= 3


def test_the_last_sequence_moves_into_the_gap_that_another_leaves() -> None:
    scheduler = Scheduler(num_slots=3, max_prefill_tokens=100)
    sequences = [make((1, 1), max_tokens=1), make((2, 2)), make((3, 3))]
    scheduler.add(sequences)
    scheduler.update(scheduler.schedule(), [5, 5, 5])
    batch = scheduler.schedule()
    assert batch.sequences == [sequences[2], sequences[1]]
    assert batch.copies == [Copy(source=2, target=0, length=2)]


def test_end_of_text_ends_a_sequence() -> None:
    scheduler = Scheduler(num_slots=1, max_prefill_tokens=10)
    sequence = make((1,))
    scheduler.add([sequence])
    scheduler.update(scheduler.schedule(), [EOS])
    assert (sequence.finish_reason, sequence.output_token_ids) == ("stop", [EOS])


prompts = st.one_of(
    st.sampled_from([(1,), (1, 2, 3), (7,) * 40, (8,) * 90]),  # often the same one
    st.lists(st.integers(1, 50), min_size=1, max_size=60).map(tuple),
)


@settings(max_examples=200, deadline=None)
@given(
    requests=st.lists(st.tuples(prompts, st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=25),
    num_slots=st.integers(1, 8),
    arrivals=st.integers(1, 6),
    tokens=st.randoms(use_true_random=False),
)
def test_every_sequence_ends_and_every_run_is_over_its_own_tokens(
    requests: list[tuple[tuple[int, ...], int, int]], num_slots: int, arrivals: int, tokens: object
) -> None:
    """Random prompts, samples and lengths that arrive while others run: no slot lost, none used twice."""
    scheduler = Scheduler(num_slots, max_prefill_tokens=100)
    cache = CacheModel(num_slots)
    pending = [[make(p, max_tokens, i) for i in range(n)] for p, max_tokens, n in requests]
    everyone = [s for group in pending for s in group]
    started: list[Sequence] = []
    for _ in range(10_000):
        for _ in range(arrivals):
            if pending:
                scheduler.add(pending.pop(0))
        if not scheduler.has_unfinished:
            break
        batch = scheduler.schedule()
        started.extend(batch.admitted)
        cache.run(batch)
        sampled = [tokens.choice([1, 2, EOS, 3, 4]) for _ in batch.sequences]  # type: ignore[attr-defined]
        for sequence in scheduler.update(batch, sampled):
            assert sequence.slot is None
        assert [s.slot for s in scheduler.running] == list(range(len(scheduler.running)))
    assert all(s.finish_reason is not None for s in everyone)
    assert all(1 <= len(s.output_token_ids) <= s.params.max_tokens for s in everyone)
    assert started == everyone  # first come, first served
