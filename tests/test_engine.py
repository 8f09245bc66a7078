"""The engine over a fake runner: results, failures, threads."""

from __future__ import annotations

import threading

import pytest

from hgt_infer.engine import Engine
from hgt_infer.errors import EngineError
from hgt_infer.scheduler import Batch, Scheduler
from hgt_infer.sequence import Sequence, SequenceParams


def make(prompt: tuple[int, ...], max_tokens: int = 4) -> Sequence:
    return Sequence(prompt, SequenceParams(1.0, 0, 1.0, max_tokens, 0, frozenset(), seed=0))


class CountingRunner:
    """Samples the number of tokens that a sequence has; fails or is interrupted when told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.num_active = 0

    def run(self, batch: Batch) -> list[int]:
        self.num_active += 1
        assert self.num_active == 1, "two threads run a batch at once"
        if self.error is not None:
            self.num_active -= 1
            raise self.error
        token_ids = [len(sequence) for sequence in batch.sequences]
        self.num_active -= 1
        return token_ids


def test_generate_runs_every_sequence_to_its_end() -> None:
    engine = Engine(CountingRunner(), Scheduler(2, 100))
    sequences = [make((9,) * length) for length in (1, 3, 20, 2, 40)]
    finished: list[Sequence] = []
    engine.generate(sequences, finished.append)
    assert sorted(map(id, finished)) == sorted(map(id, sequences))
    for sequence in sequences:
        length = len(sequence.prompt_token_ids)
        assert sequence.output_token_ids == list(range(length, length + 4))


def test_a_failed_device_fails_this_call_and_every_later_one() -> None:
    runner = CountingRunner(RuntimeError("illegal memory access"))
    engine = Engine(runner, Scheduler(2, 100))
    with pytest.raises(EngineError, match="illegal memory access"):
        engine.generate([make((1,))])
    runner.error = None
    with pytest.raises(EngineError, match="failed earlier: illegal memory access"):
        engine.generate([make((1,))])


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    runner = CountingRunner(KeyboardInterrupt())
    engine = Engine(runner, Scheduler(2, 100))
    with pytest.raises(KeyboardInterrupt):
        engine.generate([make((1,)), make((2,)), make((3,))])
    runner.error = None
    sequence = make((5,))
    finished: list[Sequence] = []
    engine.generate([sequence], finished.append)
    assert finished == [sequence]


def test_calls_from_several_threads_take_turns() -> None:
    engine = Engine(CountingRunner(), Scheduler(2, 100))
    groups = [[make((1,) * (i + 1)) for _ in range(3)] for i in range(8)]
    threads = [threading.Thread(target=engine.generate, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, group in enumerate(groups):
        assert all(s.output_token_ids == list(range(i + 1, i + 5)) for s in group)
