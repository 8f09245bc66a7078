"""The engine over fake runners: many threads, a bounded queue, cancelling, failures, its end."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.counting_runner import (
    TIMEOUT_S,
    CountingRunner,
    LateRunner,
    expected_output,
    finish,
    make,
    submit,
)

from hgt_infer.engine.device_worker import DeviceWorker
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.output_text import OutputText
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, Sequence
from hgt_infer.engine.waiting_queue import WaitingQueue
from hgt_infer.errors import EngineError, QueueFullError
from hgt_infer.outputs import Delta
from hgt_infer.requests.submission import run


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture
def engine(runner: CountingRunner) -> Iterator[Engine]:
    engine = Engine([DeviceWorker(runner, Scheduler(2))], max_queued_sequences=8)
    yield engine
    runner.gate.set()
    engine.close()


def test_every_sequence_runs_to_its_end(engine: Engine) -> None:
    sequences = [make((9,) * length) for length in (1, 3, 20, 2, 40, 300)]
    finished = finish(engine, *sequences)
    assert sorted(map(id, finished)) == sorted(map(id, sequences))
    for sequence in sequences:
        assert sequence.output_token_ids == expected_output(sequence)


def test_calls_from_many_threads_share_batches_and_each_gets_its_own(
    engine: Engine, runner: CountingRunner
) -> None:
    groups = [[make((i, j)) for j in range(20)] for i in range(16)]
    results: dict[int, list[Sequence]] = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: finish(engine, *groups[i])}))
        for i in range(16)
    ]
    runner.gate.clear()
    for thread in threads:
        thread.start()
    runner.wait_at_gate()
    while engine.stats().waiting < engine.max_queued_sequences - 1:
        time.sleep(0.001)
    runner.gate.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    for i, group in enumerate(groups):
        assert sorted(map(id, results[i])) == sorted(map(id, group))
        assert all(s.output_token_ids == expected_output(s) for s in group)
    assert any(len({s.prompt_token_ids[0] for s in batch.sequences}) == 2 for batch in runner.batches)


def test_a_submission_that_does_not_fit_the_queue_is_refused_whole(
    engine: Engine, runner: CountingRunner
) -> None:
    runner.gate.clear()
    _, first = submit(engine, make((1,)), make((1,)))
    runner.wait_at_gate()  # both have left the queue
    submit(engine, *(make((2,)) for _ in range(5)))
    with pytest.raises(QueueFullError, match=r"5 sequences wait already: no room for 4 more .* is 8"):
        submit(engine, *(make((3,)) for _ in range(4)))
    _, last = submit(engine, *(make((3,)) for _ in range(3)))
    runner.gate.set()
    assert [first.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert [last.get(timeout=TIMEOUT_S) for _ in range(3)]
    assert not any(
        s.prompt_token_ids == (3,) and len(b.sequences) > 2 for b in runner.batches for s in b.sequences
    )
    assert engine.stats().finished == 10


def test_one_call_of_any_size_feeds_itself_into_the_queue(engine: Engine) -> None:
    sequences = [make((i % 7,)) for i in range(200)]
    assert len(finish(engine, *sequences, max_in_flight=50)) == 200  # the queue takes 8


def test_sequences_are_taken_only_as_there_is_room(engine: Engine) -> None:
    taken = 0

    def sequences() -> Iterator[Sequence]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield make((1,))

    for number, _ in enumerate(run(engine, sequences(), max_in_flight=5), 1):
        assert taken <= number + 5


def test_cancelling_frees_the_slots_within_a_step(engine: Engine, runner: CountingRunner) -> None:
    endless, _ = submit(engine, make((1,), max_tokens=10**6), make((2,), max_tokens=10**6))
    runner.gate.clear()
    runner.wait_at_gate()  # in a run that began before the cancellation
    engine.cancel(endless)
    _, events = submit(engine, make((3,)))
    num_batches = len(runner.batches)
    runner.gate.set()
    assert events.get(timeout=TIMEOUT_S).output_token_ids == [1, 2, 3, 4]
    assert [s.prompt_token_ids for s in runner.batches[num_batches + 1].sequences] == [(3,)]
    stats = engine.stats()
    assert (stats.cancelled, stats.finished, stats.running, stats.waiting) == (2, 1, 0, 0)


def test_leaving_the_loop_early_cancels_the_rest(engine: Engine, runner: CountingRunner) -> None:
    results = run(engine, (make((i,), max_tokens=10 ** (i * 7)) for i in range(100)), max_in_flight=8)
    next(results)
    results.close()
    assert finish(engine, make((5,)))[0].output_token_ids == [1, 2, 3, 4]
    assert engine.stats().cancelled > 0


def test_a_stream_gets_each_token_as_it_comes(engine: Engine, runner: CountingRunner) -> None:
    text = OutputText([b"%d " % i for i in range(100)])
    _, events = submit(engine, make((1, 1), output_text=text), is_stream=True)
    deltas: list[Delta] = [events.get(timeout=TIMEOUT_S) for _ in range(4)]
    assert [delta.text for delta in deltas] == ["2 ", "3 ", "4 ", "5 "]
    assert [delta.token_ids for delta in deltas] == [(2,), (3,), (4,), (5,)]
    assert [delta.finish_reason for delta in deltas] == [None, None, None, "length"]


def test_a_failed_device_fails_every_waiting_and_every_later_call(
    engine: Engine, runner: CountingRunner
) -> None:
    runner.gate.clear()
    queues = [submit(engine, make((i,)))[1] for i in range(6)]
    runner.wait_at_gate()
    queues += [submit(engine, make((i,)))[1] for i in range(2)]
    runner.error = RuntimeError("illegal memory access")
    runner.gate.set()
    for queue in queues:
        error = queue.get(timeout=TIMEOUT_S)
        assert isinstance(error, EngineError)
        assert "illegal memory access" in str(error)
        assert error.__cause__ is runner.error
    with pytest.raises(EngineError, match="the device failed: illegal memory access") as caught:
        finish(engine, make((1,)))
    assert caught.value.__cause__ is runner.error


def test_a_call_that_waits_for_room_hears_of_a_failure(engine: Engine, runner: CountingRunner) -> None:
    runner.gate.clear()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            finish(engine, *(make((1,)) for _ in range(50)), max_in_flight=50)
        except EngineError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    runner.wait_at_gate()
    runner.error = RuntimeError("gone")
    runner.gate.set()
    thread.join(TIMEOUT_S)
    assert len(caught) == 1


def test_a_row_that_fails_ends_its_own_request_alone(engine: Engine, runner: CountingRunner) -> None:
    mistake = ZeroDivisionError("in a logits_processor")
    runner.row_errors = lambda s: mistake if s.prompt_token_ids == (1, 1) else None
    runner.gate.clear()
    _, good = submit(engine, make((2, 2), max_tokens=9))
    _, bad = submit(engine, *(make((1, 1), max_tokens=9) for _ in range(3)))
    runner.gate.set()
    assert bad.get(timeout=TIMEOUT_S) is mistake
    assert good.get(timeout=TIMEOUT_S).output_token_ids == list(range(2, 11))
    assert engine.stats().failed == 3
    assert engine.stats().running == 0


def test_results_with_nowhere_to_go_cost_nothing_more(engine: Engine) -> None:
    def publish(event: object) -> None:
        raise RuntimeError("Event loop is closed")

    engine.submit(Request(publish), [make((1,), max_tokens=2), make((2,), max_tokens=10**6)])
    assert finish(engine, make((3,)))[0].finish_reason == "length"
    assert engine.stats().running == 0


def test_closing_ends_waiting_and_later_calls_with_an_error(engine: Engine, runner: CountingRunner) -> None:
    runner.gate.clear()
    _, running = submit(engine, make((1,), max_tokens=10**6), make((1,), max_tokens=10**6))
    runner.wait_at_gate()
    _, waiting = submit(engine, make((1,)))
    threading.Timer(0.05, runner.gate.set).start()
    engine.close()
    engine.close()  # twice is once
    for events in (running, waiting):
        with pytest.raises(EngineError, match="closed"):
            raise events.get(timeout=TIMEOUT_S)
    with pytest.raises(EngineError, match="closed"):
        submit(engine, make((1,)))


def test_an_engine_that_is_let_go_of_after_its_end_is_freed() -> None:
    engine = Engine([DeviceWorker(CountingRunner(), Scheduler(2))], max_queued_sequences=8)
    finish(engine, make((1,)))
    reference = weakref.ref(engine)
    engine.close()
    del engine
    gc.collect()
    assert reference() is None


def test_a_logits_processor_that_calls_its_own_generator_gets_an_error_instead_of_a_deadlock(
    engine: Engine, runner: CountingRunner
) -> None:
    def call(sequence: Sequence) -> Exception | None:
        try:
            finish(engine, make((1,)))
        except EngineError as error:
            return error
        return None

    runner.row_errors = call
    with pytest.raises(EngineError, match="logits_processor"):
        finish(engine, make((2,)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_use_in_a_forked_process_is_an_error_there_and_nothing_hangs() -> None:
    code = """
import os, sys
from hgt_infer.engine.engine import DeviceWorker, Engine
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.errors import EngineError
from support.counting_runner import CountingRunner, finish, make
runner = CountingRunner()
engine = Engine([DeviceWorker(runner, Scheduler(2))], max_queued_sequences=8)
finish(engine, make((1,)))
pid = os.fork()
if pid == 0:
    try:
        finish(engine, make((1,)))
    except EngineError as error:
        print(error, flush=True)
    engine.close()
    os._exit(7)  # as multiprocessing does: onnxruntime hangs in an ordinary exit of any fork
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
finish(engine, make((1,)))
engine.close()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "forked" in done.stdout
    assert done.stdout.splitlines()[-1] == "7"


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    num_slots=st.integers(1, 5),
    num_threads=st.integers(1, 6),
    num_devices=st.integers(1, 3),
    is_late=st.booleans(),
)
def test_any_mix_of_calls_ends_with_every_result_and_an_idle_engine(
    seed: int, num_slots: int, num_threads: int, num_devices: int, is_late: bool
) -> None:
    """Threads that submit, feed, cancel and give up at random over one engine."""
    waiting = WaitingQueue()
    workers = [
        DeviceWorker(
            LateRunner(num_steps=1 + seed % 3) if is_late else CountingRunner(num_slots),
            Scheduler(num_slots, waiting, closes_gaps=not is_late),
        )
        for _ in range(num_devices)
    ]
    engine = Engine(workers, max_queued_sequences=10)
    failures: list[BaseException] = []

    def work(rng: random.Random) -> None:
        try:
            for _ in range(8):
                sequences = [
                    make((rng.randrange(3),) * rng.choice([1, 3, 20]), max_tokens=rng.randint(1, 9))
                    for _ in range(rng.randint(1, 12))
                ]
                kind = rng.choice(["all", "part", "submit"])
                if kind == "submit":
                    try:
                        request, events = submit(engine, *sequences)
                    except QueueFullError:
                        continue
                    for _ in range(rng.randint(0, len(sequences))):
                        events.get(timeout=TIMEOUT_S)
                    engine.cancel(request)
                    continue
                results = run(engine, iter(sequences), max_in_flight=rng.randint(1, 8))
                count = len(sequences) if kind == "all" else rng.randint(0, len(sequences))
                for _ in range(count):
                    sequence = next(results)
                    assert sequence.output_token_ids == expected_output(sequence)
                if kind == "all":
                    assert next(results, None) is None
                results.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(random.Random(seed + i),)) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    assert failures == []
    finish(engine, make((1,)))  # what was cancelled before is gone by now
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    engine.close()


def test_devices_share_one_queue() -> None:
    runners, waiting = [CountingRunner(), CountingRunner()], WaitingQueue()
    engine = Engine(
        [DeviceWorker(runner, Scheduler(2, waiting)) for runner in runners], max_queued_sequences=8
    )
    for runner in runners:
        runner.gate.clear()
    _, events = submit(engine, *(make((i,)) for i in range(8)))
    for runner in runners:
        runner.wait_at_gate()  # each has taken two
    assert (engine.stats().running, engine.stats().waiting) == (4, 4)
    for runner in runners:
        runner.gate.set()
    finished = [events.get(timeout=TIMEOUT_S) for _ in range(8)]
    assert all(s.output_token_ids == expected_output(s) for s in finished)
    assert all(runner.batches for runner in runners)
    engine.close()


def test_cancelling_frees_the_slots_of_every_device() -> None:
    waiting = WaitingQueue()
    workers = [DeviceWorker(CountingRunner(), Scheduler(2, waiting)) for _ in range(2)]
    engine = Engine(workers, max_queued_sequences=8)
    endless, _ = submit(engine, *(make((i,), max_tokens=10**6) for i in range(5)))
    while engine.stats().running < 4:
        time.sleep(0.001)
    engine.cancel(endless)
    finish(engine, *(make((1,)) for _ in range(4)))
    while engine.stats().running:
        time.sleep(0.001)
    assert engine.stats().cancelled == 5
    engine.close()


def test_a_device_that_fails_ends_the_calls_of_all() -> None:
    runners, waiting = [CountingRunner(), CountingRunner()], WaitingQueue()
    engine = Engine(
        [DeviceWorker(runner, Scheduler(2, waiting)) for runner in runners], max_queued_sequences=8
    )
    queues = [submit(engine, make((i,), max_tokens=10**6))[1] for i in range(6)]
    while engine.stats().running < 4:
        time.sleep(0.001)
    runners[1].error = RuntimeError("illegal memory access")
    for queue in queues:
        error = queue.get(timeout=TIMEOUT_S)
        assert isinstance(error, EngineError)
        assert "illegal memory access" in str(error)
    engine.close()
    assert all(runner.is_closed for runner in runners)


def test_warming_up_is_done_on_every_device_and_waited_for() -> None:
    runners, waiting = [CountingRunner(), CountingRunner()], WaitingQueue()
    engine = Engine(
        [DeviceWorker(runner, Scheduler(2, waiting)) for runner in runners], max_queued_sequences=8
    )
    engine.warmup()
    assert [runner.num_warmups for runner in runners] == [1, 1]
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.warmup()


def test_a_warm_up_that_fails_is_an_error_of_its_caller(engine: Engine, runner: CountingRunner) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    runner.warmup = fail  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="the device failed: out of memory"):
        engine.warmup()


def test_a_sequence_whose_tokens_are_seen_late_ends_where_it_should() -> None:
    worker = DeviceWorker(LateRunner(num_steps=3), Scheduler(2, closes_gaps=False))
    engine = Engine([worker], max_queued_sequences=8)
    sequences = [make((9,) * (1 + i % 3), max_tokens=1 + i) for i in range(12)]
    assert len(finish(engine, *sequences)) == 12
    for sequence in sequences:
        assert sequence.output_token_ids == expected_output(sequence)
    while worker.has_work:
        time.sleep(0.001)  # what is in flight behind the last end is collected too
    engine.close()


def test_room_that_a_failed_request_leaves_is_given_to_who_waits_for_it() -> None:
    runner = CountingRunner(1)
    engine = Engine([DeviceWorker(runner, Scheduler(1))], max_queued_sequences=1)
    failing = [make((1, 2)), make((1, 2))]
    runner.row_errors = lambda sequence: ValueError("no") if sequence in failing else None
    runner.gate.clear()
    request, events = submit(engine, failing[0])
    runner.wait_at_gate()
    engine.submit(request, [failing[1]])  # the queue is full
    found: list[Sequence] = []
    waiting = threading.Thread(target=lambda: found.extend(finish(engine, make((3, 4)))), daemon=True)
    waiting.start()
    time.sleep(0.1)  # until it waits for room; where it does not yet, the test holds less
    runner.gate.set()
    waiting.join(TIMEOUT_S)
    assert len(found) == 1
    assert isinstance(events.get(timeout=TIMEOUT_S), ValueError)
    engine.close()
