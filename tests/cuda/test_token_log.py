"""The log of tokens alone: counts, ends, which slots are listed, and which reports are none of theirs."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hgt_infer.cuda.slot_record import NOT_FINITE, PROMPT_TOKEN, PROPOSED
from hgt_infer.cuda.token_log import Seen, TokenLog

END = 9


def make(num_slots: int = 3, max_length: int = 20) -> TokenLog:
    """A log in whose slots sequences of at most 4 tokens run from step 0 on, which END ends."""
    log = TokenLog(num_slots, max_length)
    for slot in range(num_slots):
        enter(log, slot)
    return log


def enter(
    log: TokenLog, slot: int, first_step: int = 0, *, max_tokens: int = 4, is_watched: bool = False
) -> None:
    log.enter(slot, max_tokens=max_tokens, end_token_id=END, is_watched=is_watched)
    log.resume(slot, first_step)


def examine(log: TokenLog, first_step: int, *reports: tuple[int, ...]) -> Seen:
    return log.examine(first_step, np.array(reports, np.int32))


def test_a_slot_is_listed_for_its_first_token_and_its_last_one() -> None:
    log = make(num_slots=1)
    assert list(examine(log, 0, (5,)).listed) == [0]
    assert log.take(0) == [5]
    assert not examine(log, 1, (6,)).listed
    assert not examine(log, 2, (7,)).listed
    assert list(examine(log, 3, (8,)).listed) == [0]
    assert log.take(0) == [6, 7, 8]
    assert log.take(0) == []


def test_end_of_text_ends_a_slot_and_what_follows_is_none_of_its() -> None:
    log = make(num_slots=2)
    seen = examine(log, 0, (5, END), (6, 1), (7, 2))
    assert (list(seen.listed), seen.num_sampled) == ([0, 1], 4)
    assert (log.take(0), log.take(1)) == ([5, 6, 7], [END])
    assert examine(log, 3, (8, 3)).num_sampled == 1


def test_a_watched_slot_is_listed_for_every_token() -> None:
    log = make(num_slots=2)
    enter(log, 1, is_watched=True)
    for step, token_id in enumerate((5, 6, 7, 8)):
        assert 1 in examine(log, step, (token_id, token_id)).listed
        assert log.take(1) == [token_id]


def test_prompt_tokens_that_were_fed_are_counted_and_nothing_else() -> None:
    log = make(num_slots=2)
    seen = examine(log, 0, (PROMPT_TOKEN, 5), (PROMPT_TOKEN, 6))
    assert (seen.num_fed, seen.num_sampled, list(seen.listed)) == (2, 2, [1])
    seen = examine(log, 2, (4, 7))
    assert (seen.num_fed, seen.num_sampled, list(seen.listed)) == (0, 2, [0])
    assert log.take(0) == [4]


def test_a_slot_that_waits_is_reported_once_until_it_goes_on() -> None:
    log = make(num_slots=2)
    seen = examine(log, 0, (5, 5), (NOT_FINITE, PROPOSED - 3), (NOT_FINITE, PROPOSED - 3))
    assert seen.waiting == {0: NOT_FINITE, 1: PROPOSED - 3}
    assert (seen.num_sampled, seen.num_fed) == (2, 0)
    assert not examine(log, 3, (NOT_FINITE, PROPOSED - 3)).waiting
    assert log.not_taken(0) == [5]
    assert log.append(0, 6)
    log.resume(0, 5)
    assert examine(log, 4, (NOT_FINITE, PROPOSED - 3)).num_sampled == 0  # was in flight meanwhile
    assert examine(log, 5, (7, PROPOSED - 3)).num_sampled == 1
    assert log.take(0) == [5, 6, 7]


def test_a_token_of_the_hosts_ends_a_slot_as_one_of_the_devices_does() -> None:
    log = make(num_slots=3)
    enter(log, 1, max_tokens=1)
    examine(log, 0, (NOT_FINITE, NOT_FINITE, NOT_FINITE))
    assert [log.append(slot, token_id) for slot, token_id in ((0, END), (1, 5), (2, 5))] == [
        False,
        False,
        True,
    ]


def test_reports_of_steps_before_a_sequence_entered_are_not_its_own() -> None:
    log = make(num_slots=1)
    examine(log, 0, (5,))
    enter(log, 0, first_step=3)
    assert examine(log, 1, (6,), (END,)).num_sampled == 0
    examine(log, 3, (7,))
    assert log.take(0) == [7]


def test_a_slot_that_was_left_reports_nothing() -> None:
    log = make(num_slots=2)
    log.leave(0)
    seen = examine(log, 0, (NOT_FINITE, 5))
    assert (list(seen.listed), seen.waiting, seen.num_sampled) == ([1], {}, 1)


def test_a_block_may_have_fewer_rows_than_there_are_slots() -> None:
    log = make(num_slots=3)
    assert list(examine(log, 0, (5, 5)).listed) == [0, 1]


@settings(max_examples=200)
@given(
    num_slots=st.integers(1, 5),
    blocks=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    rng=st.randoms(use_true_random=False),
)
def test_it_finds_what_a_loop_over_every_row_finds(
    num_slots: int, blocks: list[int], rng: random.Random
) -> None:
    """Against one Python list per slot: every token once, in order, and nothing behind an end."""
    max_length = 8
    log = TokenLog(num_slots, max_length)
    output: dict[int, list[int]] = {}  # of the slots that run
    taken: dict[int, list[int]] = {}
    limits: dict[int, int] = {}
    step = 0
    for num_steps in blocks:
        for slot in range(num_slots):
            if slot not in output and rng.random() < 0.5:
                limits[slot] = rng.randint(1, max_length)
                enter(log, slot, step, max_tokens=limits[slot], is_watched=rng.random() < 0.3)
                output[slot], taken[slot] = [], []
        reports = [
            tuple(rng.choice([PROMPT_TOKEN, PROMPT_TOKEN, 1, 2, 3, 4, END]) for _ in range(num_slots))
            for _ in range(num_steps)
        ]
        running = {slot: list(tokens) for slot, tokens in output.items()}
        ended, num_sampled, num_fed = set(), 0, 0
        for report in reports:
            for slot in list(running):
                if report[slot] == PROMPT_TOKEN:
                    num_fed += 1
                    continue
                num_sampled += 1
                running[slot].append(report[slot])
                output[slot] = running[slot]
                if report[slot] == END or len(running[slot]) == limits[slot]:
                    ended.add(slot)
                    del running[slot]
        seen = examine(log, step, *reports)
        assert (seen.num_sampled, seen.num_fed) == (num_sampled, num_fed)
        for slot in seen.listed:
            taken[slot] += log.take(slot)
            assert taken[slot] == output[slot]
        assert ended <= set(seen.listed)
        for slot in ended:
            del output[slot]
        step += num_steps
