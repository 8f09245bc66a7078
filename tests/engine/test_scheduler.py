"""The scheduler alone: turns, admission, slots, copies, cancelling and the end of sequences."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cache_model import CacheModel, sampled, tokens_of

from hgt_infer.engine.batch import Batch, BatchOutput, Copy
from hgt_infer.engine.scheduler import DEFAULT_MAX_FED_TOKENS, Scheduler
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.engine.waiting_queue import WaitingQueue

EOS = 99
LONG = DEFAULT_MAX_FED_TOKENS + 1


def make(prompt: tuple[int, ...], max_tokens: int = 3, index: int = 0, **params: Any) -> Sequence:
    resolved = SequenceParams(max_tokens=max_tokens, seed=0, eos_token_ids=frozenset([EOS]), **params)
    return Sequence(prompt, resolved, index)


def add(scheduler: Scheduler, *sequences: Sequence) -> Request:
    """Submit sequences as one call."""
    request = Request(lambda event: None)
    scheduler.waiting.add(request, sequences)
    return request


def advance(scheduler: Scheduler, batch: Batch, output: BatchOutput) -> list[Sequence]:
    """As the engine: a batch is launched, and its output comes."""
    scheduler.launched(batch)
    return scheduler.update(batch, output)


def schedule(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    assert batch is not None
    return batch


def run_to_end(scheduler: Scheduler) -> list[Batch]:
    cache, batches = CacheModel(scheduler.num_slots), []
    while (batch := scheduler.schedule()) is not None:
        batches.append(batch)
        advance(scheduler, batch, cache.run(batch))
    return batches


def step(scheduler: Scheduler, *token_ids: int) -> Batch:
    batch = schedule(scheduler)
    advance(scheduler, batch, sampled(batch, list(token_ids)))
    return batch


def test_a_short_prompt_is_fed_token_by_token_beside_running_sequences() -> None:
    scheduler = Scheduler(num_slots=2)
    running, rider = make((1,), max_tokens=10), make((4, 5, 6))
    add(scheduler, running)
    step(scheduler, 7)
    add(scheduler, rider)
    fed = []
    for _ in range(3):
        batch = schedule(scheduler)
        assert not batch.is_prefill
        fed.append(rider.next_input_id)
        advance(scheduler, batch, sampled(batch, [8, 8]))
    assert fed == [4, 5, 6]
    assert rider.output_token_ids == [8]  # what was sampled while it fed its prompt is dropped
    assert running.output_token_ids == [7, 8, 8, 8]


def test_a_step_computes_pieces_of_prompts_beside_single_tokens() -> None:
    scheduler = Scheduler(num_slots=4, mixes_prompts=True)
    running, short, long = make((1,), max_tokens=10), make((4, 5, 6)), make(tuple(range(300)))
    add(scheduler, running)
    assert step(scheduler, 7).num_scheduled_tokens == [1]
    add(scheduler, short, long)
    # 256 tokens beside one of each; what is left of the long prompt takes another step.
    batch = step(scheduler, 7, 8, 9)
    assert (batch.is_prefill, batch.num_scheduled_tokens) == (False, [1, 3, 255])
    assert (running.output_token_ids, short.output_token_ids) == ([7, 7], [8])
    assert (long.output_token_ids, long.num_computed) == ([], 255)
    assert step(scheduler, 7, 8, 9).num_scheduled_tokens == [1, 1, 45]
    assert (long.output_token_ids, long.num_computed) == ([9], 300)
    assert step(scheduler, 7, 8, 9).num_scheduled_tokens == [1, 1, 1]


def test_a_long_prompt_that_a_step_is_computing_is_waited_for_and_copied() -> None:
    scheduler = Scheduler(num_slots=4, mixes_prompts=True)
    first, second = (make(tuple(range(LONG)), index=i) for i in range(2))
    add(scheduler, first, second)
    assert schedule(scheduler).sequences == [first]
    batch = schedule(scheduler)
    assert batch.num_scheduled_tokens == [LONG]
    advance(scheduler, batch, sampled(batch, [1]))
    batch = schedule(scheduler)
    assert batch.copies == [Copy(0, 1, LONG - 1)]
    assert batch.num_scheduled_tokens == [1, 1]
    short = [make(tuple(range(LONG - 1)), index=i) for i in range(2)]  # is computed twice, at once
    add(scheduler, *short)
    assert schedule(scheduler).num_scheduled_tokens == [1, 1, LONG - 1, LONG - 1]


def test_a_prompt_that_is_scored_is_prefilled_where_steps_mix_prompts_too() -> None:
    scheduler = Scheduler(num_slots=2, mixes_prompts=True)
    add(scheduler, make((1, 2, 3), prompt_logprobs=0))
    batch = schedule(scheduler)
    assert (batch.is_prefill, batch.num_tokens) == (True, 2)


def test_how_a_prompt_is_computed_depends_on_the_prompt_alone() -> None:
    for num_running in (0, 3):
        for length in (1, 2, DEFAULT_MAX_FED_TOKENS, LONG, 300):
            scheduler = Scheduler(num_slots=4)
            for i in range(num_running):
                add(scheduler, make((i,), max_tokens=500))
            if num_running:
                step(scheduler, *range(num_running))
            sequence = make((50,) * length)
            add(scheduler, sequence)
            prefills = []
            while not sequence.output_token_ids:
                batch = schedule(scheduler)
                if batch.is_prefill:
                    prefills.append(batch.num_tokens)
                advance(scheduler, batch, sampled(batch, [1] * len(batch.sequences)))
            assert prefills == {LONG: [LONG - 1], 300: [256, 43]}.get(length, [])


def test_prompts_of_one_length_are_prefilled_together_and_others_by_themselves() -> None:
    scheduler = Scheduler(num_slots=8)
    add(scheduler, *(make((i,) * length) for i, length in enumerate([20, 20, 20, 21, 21, 20])))
    prefills = [b for b in run_to_end(scheduler) if b.is_prefill]
    assert [[len(s.prompt_token_ids) for s in b.sequences] for b in prefills] == [[20] * 3, [21] * 2, [20]]


def test_a_prefill_stays_within_its_limit_of_tokens() -> None:
    scheduler = Scheduler(num_slots=8)
    add(scheduler, *(make((i,) * 101) for i in range(5)))
    prefills = [b for b in run_to_end(scheduler) if b.is_prefill]
    assert [len(b.sequences) for b in prefills] == [2, 2, 1]


def test_a_freed_slot_goes_to_the_next_waiting_sequence() -> None:
    scheduler = Scheduler(num_slots=1)
    first, second = make((1,), max_tokens=1), make((2,), max_tokens=1)
    add(scheduler, first, second)
    batch = schedule(scheduler)
    assert advance(scheduler, batch, sampled(batch, [5])) == [first]
    assert first.slot is None
    assert schedule(scheduler).sequences == [second]
    assert second.slot == 0


def test_calls_take_turns_a_sequence_each() -> None:
    scheduler = Scheduler(num_slots=2)
    add(scheduler, *(make((1,), max_tokens=1, index=i) for i in range(500)))
    step(scheduler, 5, 5)
    singles = [make((10 + i,), max_tokens=1) for i in range(3)]
    for single in singles:
        add(scheduler, single)
    order = []
    while not all(single.finish_reason for single in singles):
        order += step(scheduler, 5, 5).sequences
    # The large request came first, so one sequence of it runs first, and none between the singles.
    assert [sequence.prompt_token_ids[0] for sequence in order] == [1, 10, 11, 12]


def test_a_call_that_is_given_more_sequences_keeps_its_place_in_line() -> None:
    scheduler = Scheduler(num_slots=1)
    first, second = Request(lambda event: None), Request(lambda event: None)
    for request, token_id in ((first, 1), (second, 2), (first, 3)):
        scheduler.waiting.add(request, [make((token_id,), max_tokens=1)])
    assert scheduler.waiting.num_waiting == 3
    order = [batch.sequences[0].prompt_token_ids[0] for batch in run_to_end(scheduler)]
    assert order == [1, 2, 3]


def test_siblings_copy_a_long_prompt_instead_of_computing_it() -> None:
    scheduler = Scheduler(num_slots=4)
    prompt = (1,) * 50
    add(scheduler, *(make(prompt, index=i) for i in range(6)))
    batches = run_to_end(scheduler)
    assert [len(b.sequences) for b in batches if b.is_prefill] == [1]
    first_wave = [copy for copy in batches[1].copies if copy.length == 49]
    assert first_wave == [Copy(0, 1, 49), Copy(0, 2, 49), Copy(0, 3, 49)]
    assert not any(b.copies for b in batches[2:])  # the others find the prompt where they go


def test_calls_that_wait_with_the_same_prompt_share_its_prefill() -> None:
    scheduler = Scheduler(num_slots=4)
    for _ in range(3):
        add(scheduler, make((1,) * 50, max_tokens=5))
    batches = run_to_end(scheduler)
    assert sum(b.is_prefill for b in batches) == 1
    assert sum(copy.length == 49 for b in batches for copy in b.copies) == 2


def test_a_prompt_is_copied_from_a_slot_whose_sequence_has_ended() -> None:
    scheduler = Scheduler(num_slots=3)
    prompt = (1,) * 50
    add(scheduler, make((5,), max_tokens=99), make(prompt, max_tokens=1))
    batches = [schedule(scheduler)]
    advance(scheduler, batches[0], BatchOutput())
    step(scheduler, 5, 5)
    add(scheduler, make((6,), max_tokens=99), make(prompt, max_tokens=1))
    batch = schedule(scheduler)  # the first one takes the slot that held the prompt
    assert batch.is_prefill
    advance(scheduler, batch, BatchOutput())
    step(scheduler, 5, 5, 5)
    add(scheduler, make(prompt))
    assert schedule(scheduler).copies == []


def test_a_sequence_that_reports_its_prompt_computes_it_itself() -> None:
    scheduler = Scheduler(num_slots=2)
    prompt = (1,) * 50
    add(scheduler, make(prompt, max_tokens=50))
    advance(scheduler, schedule(scheduler), BatchOutput())
    add(scheduler, make(prompt, prompt_logprobs=0))
    batch = schedule(scheduler)
    assert batch.is_prefill
    assert batch.copies == []


def test_a_sequence_that_generates_nothing_ends_with_its_prompt() -> None:
    for length in (2, DEFAULT_MAX_FED_TOKENS, LONG, 600):
        scheduler = Scheduler(num_slots=2)
        sequence = make((1,) * length, max_tokens=0, prompt_logprobs=0)
        add(scheduler, sequence)
        batches = run_to_end(scheduler)
        assert sequence.finish_reason == "length"
        assert sequence.output_token_ids == []
        assert sum(batch.num_tokens for batch in batches) == length - 1


def test_the_last_sequence_moves_into_the_gap_that_another_leaves() -> None:
    scheduler = Scheduler(num_slots=3)
    sequences = [make((1,), max_tokens=1), make((2,)), make((3,))]
    add(scheduler, *sequences)
    step(scheduler, 5, 5, 5)
    batch = schedule(scheduler)
    assert batch.sequences == [sequences[2], sequences[1]]
    assert batch.copies == [Copy(source=2, target=0, length=1)]


def test_no_sequence_that_ends_is_moved_first() -> None:
    scheduler = Scheduler(num_slots=4)
    ends = (1, 9, 1, 1)
    sequences = [make((i,), max_tokens=max_tokens) for i, max_tokens in enumerate(ends)]
    add(scheduler, *sequences)
    step(scheduler, 5, 5, 5, 5)
    assert schedule(scheduler).copies == [Copy(source=1, target=0, length=1)]


def test_a_waiting_sequence_fills_a_gap_and_nobody_moves() -> None:
    scheduler = Scheduler(num_slots=3)
    sequences = [make((1,), max_tokens=1), make((2,)), make((3,)), make((4,))]
    add(scheduler, *sequences)
    step(scheduler, 5, 5, 5)
    batch = schedule(scheduler)
    assert batch.sequences == [sequences[3], sequences[1], sequences[2]]
    assert (batch.copies, batch.admitted) == ([], [sequences[3]])


def test_gaps_stay_where_sequences_do_not_move() -> None:
    scheduler = Scheduler(num_slots=4, closes_gaps=False)
    sequences = [make((i,), max_tokens=max_tokens) for i, max_tokens in enumerate((9, 1, 1, 9))]
    add(scheduler, *sequences)
    step(scheduler, 5, 5, 5, 5)
    batch = schedule(scheduler)
    assert [s.slot for s in batch.sequences] == [0, 3]
    assert (batch.copies, sorted(batch.released)) == ([], [1, 2])
    other = make((7,))
    add(scheduler, other)
    assert schedule(scheduler).released == []
    assert other.slot == 1


def test_a_slot_that_is_given_on_at_once_is_not_released() -> None:
    scheduler = Scheduler(num_slots=2, closes_gaps=False)
    add(scheduler, make((1,), max_tokens=1), make((2,), max_tokens=1), make((3,)))
    step(scheduler, 5, 5)
    assert schedule(scheduler).released == [1]


def test_slots_that_were_freed_before_an_idle_time_are_released_behind_it() -> None:
    scheduler = Scheduler(num_slots=3, closes_gaps=False)
    add(scheduler, *(make((i,), max_tokens=1) for i in range(3)))
    step(scheduler, 5, 5, 5)
    assert scheduler.schedule() is None
    add(scheduler, make((7,)))
    assert schedule(scheduler).released == [1, 2]
    assert schedule(scheduler).released == []


def test_prompts_are_prefilled_one_by_one_where_they_must_not_share_a_run() -> None:
    scheduler = Scheduler(num_slots=4, shares_prefills=False)
    add(scheduler, *(make((i,) * 20) for i in range(3)))
    assert [len(b.sequences) for b in run_to_end(scheduler) if b.is_prefill] == [1, 1, 1]


def test_a_prompt_that_is_scored_is_prefilled_however_short() -> None:
    scheduler = Scheduler(num_slots=2)
    add(scheduler, make((1, 2), prompt_logprobs=0))
    batch = schedule(scheduler)
    assert (batch.is_prefill, batch.num_tokens) == (True, 1)


@pytest.mark.parametrize(("length", "is_copied"), [(DEFAULT_MAX_FED_TOKENS, False), (LONG, True)])
def test_only_a_prompt_that_would_be_prefilled_anyway_is_copied_from_one_that_was_scored(
    length: int, is_copied: bool
) -> None:
    """A prefill and steps round differently: a request must not depend on what others were asked."""
    scheduler = Scheduler(num_slots=2)
    add(scheduler, make((1,) * length, max_tokens=50, prompt_logprobs=0))
    assert step(scheduler).is_prefill
    step(scheduler, 5)
    other = make((1,) * length)
    add(scheduler, other)
    assert bool(schedule(scheduler).copies) == is_copied
    assert other.num_computed == (length - 1 if is_copied else 0)


def test_two_schedulers_share_a_line() -> None:
    waiting = WaitingQueue()
    schedulers = [Scheduler(2, waiting), Scheduler(1, waiting)]
    sequences = [make((i,), max_tokens=1) for i in range(5)]
    request = add(schedulers[0], *sequences)
    admitted = [schedule(scheduler).admitted for scheduler in schedulers]
    assert admitted == [sequences[:2], sequences[2:3]]
    assert schedulers[1].cancel(request) == [*sequences[3:], sequences[2]]
    assert schedulers[0].cancel(request) == sequences[:2]
    assert not any(scheduler.has_unfinished for scheduler in schedulers)


def test_what_comes_for_a_sequence_that_has_left_is_dropped() -> None:
    scheduler = Scheduler(num_slots=1)
    sequence = make((1,))
    request = add(scheduler, sequence)
    batch = schedule(scheduler)
    scheduler.cancel(request)
    assert advance(scheduler, batch, sampled(batch, [5])) == []
    assert sequence.output_token_ids == []


def test_tokens_behind_the_end_are_dropped() -> None:
    scheduler = Scheduler(num_slots=1)
    sequence = make((1,), max_tokens=9)
    add(scheduler, sequence)
    batch = schedule(scheduler)
    advance(scheduler, batch, BatchOutput([(sequence, [5, EOS, 6])]))
    assert sequence.output_token_ids == [5, EOS]


@given(
    token_ids=st.lists(st.sampled_from([5, 6, EOS, 42]), min_size=1, max_size=8),
    max_tokens=st.integers(1, 8),
    stop_token_ids=st.sampled_from([frozenset(), frozenset([42])]),
)
def test_many_tokens_at_once_are_as_one_by_one(
    token_ids: list[int], max_tokens: int, stop_token_ids: frozenset[int]
) -> None:
    at_once, one_by_one = (make((1,), max_tokens=max_tokens, stop_token_ids=stop_token_ids) for _ in range(2))
    at_once.extend(token_ids)
    for token_id in token_ids:
        if one_by_one.finish_reason is None:
            one_by_one.append(token_id)
    for name in ("output_token_ids", "finish_reason", "stop_reason"):
        assert getattr(at_once, name) == getattr(one_by_one, name)


def test_cancelling_frees_slots_for_the_next_run_and_forgets_what_waits() -> None:
    scheduler = Scheduler(num_slots=2)
    cancelled, other = [make((i,), max_tokens=100) for i in range(3)], make((9,))
    request = add(scheduler, *cancelled)
    add(scheduler, other)
    step(scheduler, 5, 5)
    assert sorted(scheduler.cancel(request), key=tokens_of) == cancelled
    assert scheduler.waiting.num_waiting == 0
    batch = schedule(scheduler)
    assert batch.sequences == [other]
    assert other.slot == 0
    assert scheduler.cancel(request) == []


def test_a_prompt_that_is_cancelled_half_computed_leaves_its_slot() -> None:
    scheduler = Scheduler(num_slots=3)
    add(scheduler, make((1,), max_tokens=9))
    step(scheduler, 5)
    request = add(scheduler, make((2,) * 600))
    other = make((3,) * 20)
    add(scheduler, other)
    assert schedule(scheduler).num_tokens == 256
    advance(scheduler, Batch(scheduler.running[1:], 256, True, [], []), BatchOutput())
    scheduler.cancel(request)
    batch = schedule(scheduler)
    assert (batch.sequences, batch.num_tokens) == ([other], 19)
    assert other.slot == 1


def test_end_of_text_ends_a_sequence() -> None:
    scheduler = Scheduler(num_slots=1)
    sequence = make((1,))
    add(scheduler, sequence)
    step(scheduler, EOS)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", None)
    assert sequence.output_token_ids == [EOS]


def test_a_stop_token_ends_a_sequence_and_is_its_reason() -> None:
    scheduler = Scheduler(num_slots=1)
    sequence = make((1,), stop_token_ids=frozenset([42]))
    add(scheduler, sequence)
    step(scheduler, 7)
    step(scheduler, 42)
    assert (sequence.finish_reason, sequence.stop_reason) == ("stop", 42)


prompts = st.one_of(
    st.sampled_from([(1,), (1, 2, 3), (7,) * 40, (8,) * 90, (9,) * 300]),  # often the same one
    st.lists(st.integers(1, 50), min_size=1, max_size=60).map(tuple),
)
calls = st.tuples(
    prompts,
    st.integers(0, 12),  # max_tokens
    st.integers(1, 5),  # samples
    st.sampled_from([None, None, 0]),  # prompt_logprobs
)


@settings(max_examples=300)
@given(
    requests=st.lists(calls, min_size=1, max_size=25),
    num_slots=st.integers(1, 8),
    arrivals=st.integers(1, 6),
    cancels=st.floats(0, 0.2),
    mixes_prompts=st.booleans(),
    rng=st.randoms(use_true_random=False),
)
def test_every_sequence_ends_and_every_run_is_over_its_own_tokens(
    requests: list[tuple[tuple[int, ...], int, int, int | None]],
    num_slots: int,
    arrivals: int,
    cancels: float,
    mixes_prompts: bool,
    rng: random.Random,
) -> None:
    """Calls that arrive, end and are cancelled while others run: no slot lost, none used twice."""
    scheduler, cache = Scheduler(num_slots, mixes_prompts=mixes_prompts), CacheModel(num_slots)
    pending = []
    for prompt, max_tokens, n, prompt_logprobs in requests:
        if len(prompt) == 1 or prompt_logprobs is None:
            max_tokens = max(1, max_tokens)  # else there is nothing to run
        pending.append([make(prompt, max_tokens, i, prompt_logprobs=prompt_logprobs) for i in range(n)])
    everyone = [sequence for group in pending for sequence in group]
    alive: list[Request] = []
    started: dict[int, list[int]] = {}
    gone: set[Sequence] = set()
    for _ in range(20_000):
        alive += [add(scheduler, *group) for group in pending[:arrivals]]
        del pending[:arrivals]
        while alive and rng.random() < cancels:
            gone.update(scheduler.cancel(alive.pop(rng.randrange(len(alive)))))
        assert scheduler.waiting.num_waiting == sum(
            len(request.waiting) for request in scheduler.waiting.requests
        )
        assert all(request.waiting for request in scheduler.waiting.requests)
        if not scheduler.has_unfinished:
            if pending:
                continue
            break
        batch = schedule(scheduler)
        for sequence in batch.admitted:
            started.setdefault(id(sequence.request), []).append(sequence.sample_index)
        if not batch.is_prefill:  # a free slot beside a waiting call would be wasted
            is_full = len(batch.sequences) == num_slots or not scheduler.waiting.requests
            assert is_full or any(not s.has_cached_prompt for s in batch.sequences)
        cache.run(batch)
        output = sampled(batch, [rng.choice([1, 2, EOS, 3, 4]) for _ in batch.sequences])
        for sequence in advance(scheduler, batch, output):
            assert sequence.slot is None
        slots = [s.slot for s in scheduler.running]
        assert len(slots) == len(set(slots)) == scheduler.num_running
    assert not scheduler.running
    assert not scheduler.waiting.requests
    for sequence in everyone:
        assert (sequence.finish_reason is not None) != (sequence in gone)
        assert len(sequence.output_token_ids) <= sequence.params.max_tokens
    assert all(indices == sorted(indices) for indices in started.values())  # in their order within a call


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    num_slots=st.integers(1, 5),
    length=st.integers(1, 4),
)
def test_no_call_waits_for_more_than_one_turn_of_each_other(
    sizes: list[int], num_slots: int, length: int
) -> None:
    """Between two admissions of a waiting call, each other call has at most one."""
    scheduler, cache = Scheduler(num_slots), CacheModel(num_slots)
    for number, size in enumerate(sizes):
        add(scheduler, *(make((number, i), max_tokens=length) for i in range(size)))
    order: list[int] = []
    while (batch := scheduler.schedule()) is not None:
        order += [s.prompt_token_ids[0] for s in batch.admitted]
        advance(scheduler, batch, cache.run(batch))
    for number, size in enumerate(sizes):
        turns = [-1] + [i for i, call in enumerate(order) if call == number]
        assert len(turns) == size + 1
        for begin, end in itertools.pairwise(turns):
            between = order[begin + 1 : end]
            assert len(between) == len(set(between))
