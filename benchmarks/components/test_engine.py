"""What a step costs in the engine's own thread: scheduler, texts, publishing. The runner does nothing."""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks.components.conftest import Record, recorded_clock
from benchmarks.measure.comparison import Spread
from hgt_infer.engine.batch import Batch, BatchOutput
from hgt_infer.engine.device_worker import DeviceWorker
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.output_text import OutputText
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, SequenceParams
from hgt_infer.engine.sequence import Sequence as Sample

CASE = "engine"
GOAL_US = 60.0
NUM_SLOTS = 64
PROMPT = (1, 2, 3, 4)
NUM_NEW_TOKENS = 35
NUM_STEPS_EACH = len(PROMPT) - 1 + NUM_NEW_TOKENS
NUM_STEPS, NUM_WARMUP_STEPS, STEPS_PER_CHUNK = 10_000, 1_000, 200
TOKEN_ID = 7
TOKEN_BYTES = [b" word"] * 50_256 + [b""]
STOP = "\n"


class FreeRunner:
    """Samples the same token each time, at once.

    Attributes:
        seconds: what passed between the end of one run and the start of the next.
        is_done: set when there are num_steps of them.
    """

    max_in_flight = 1

    def __init__(self, num_steps: int) -> None:
        self.seconds: list[float] = []
        self.is_done = threading.Event()
        self._num_steps = num_steps
        self._end_s: float | None = None
        self._output = BatchOutput()

    def launch(self, batch: Batch) -> None:
        start_s = time.perf_counter()
        if self._end_s is not None and len(self.seconds) < self._num_steps:
            assert len(batch.sequences) == NUM_SLOTS, "nobody waits any more"
            self.seconds.append(start_s - self._end_s)
        elif self._end_s is not None:
            self.is_done.set()
        new_tokens = [
            (sequence, [TOKEN_ID] if sequence.has_cached_prompt else []) for sequence in batch.sequences
        ]
        self._output = BatchOutput(new_tokens, num_sampled=NUM_SLOTS)

    def collect(self) -> BatchOutput:
        self._end_s = time.perf_counter()
        return self._output

    def warmup(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.benchmark(timer=recorded_clock, group=CASE)
@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "streamed"])
def test_engine(
    is_stream: bool, benchmark: Any, replay: Callable[[Sequence[float]], None], record: Record
) -> None:
    num_steps = NUM_WARMUP_STEPS + NUM_STEPS
    step_s = engine_seconds(num_steps=num_steps, is_stream=is_stream)[NUM_WARMUP_STEPS:]
    chunks_s = [
        statistics.fmean(step_s[start : start + STEPS_PER_CHUNK])
        for start in range(0, NUM_STEPS, STEPS_PER_CHUNK)
    ]
    replay(chunks_s)
    chunks_us = [1e6 * seconds for seconds in chunks_s]
    spread = Spread.of(chunks_us)
    name = "streamed, with a stop string" if is_stream else "plain"
    line = (
        f"{name}: {spread.median:.1f} µs a step of {NUM_SLOTS} rows ({spread.low:.1f}–{spread.high:.1f}, "
        f"IQR {spread.first_quartile:.1f}–{spread.third_quartile:.1f}, {len(chunks_us)} chunks of "
        f"{STEPS_PER_CHUNK} steps), goal {GOAL_US:g}"
    )
    values = {
        "name": name,
        "num_slots": NUM_SLOTS,
        "prompt_length": len(PROMPT),
        "num_new_tokens": NUM_NEW_TOKENS,
        "steps_per_chunk": STEPS_PER_CHUNK,
        "us_per_step": vars(spread),
        "goal_us": GOAL_US,
        "chunks_us_per_step": chunks_us,
    }
    record(CASE, line, values)


def engine_seconds(*, num_steps: int, is_stream: bool) -> list[float]:
    """What each step took beside the runner, with all slots in use and a queue that is never empty."""
    runner = FreeRunner(num_steps)
    events: deque[Any] = deque(maxlen=NUM_SLOTS)  # nobody reads: readers run while a real runner is busy
    samples = make_samples(num_steps, is_stream=is_stream)
    engine = Engine([DeviceWorker(runner, Scheduler(NUM_SLOTS))], max_queued_sequences=len(samples))
    try:
        if is_stream:  # each one a call of its own
            for sample in samples:
                engine.submit(Request(events.append, is_stream=True), [sample])
        else:
            engine.submit(Request(events.append), samples)
        while not runner.is_done.wait(timeout=1):
            if events and isinstance(events[-1], BaseException):
                raise events[-1]
    finally:
        engine.close()
    check(samples, num_steps)
    return runner.seconds


def make_samples(num_steps: int, *, is_stream: bool) -> list[Sample]:
    """Enough for num_steps steps. The first ones have 1, 2, … tokens, so that they do not all end at once."""
    num_samples = NUM_SLOTS * (2 + num_steps // NUM_STEPS_EACH)
    return [
        Sample(
            (number, *PROMPT[1:]),
            SequenceParams(
                max_tokens=1 + number % NUM_NEW_TOKENS if number < NUM_SLOTS else NUM_NEW_TOKENS,
                seed=number,
                eos_token_ids=frozenset([50_256]),
            ),
            output_text=OutputText(TOKEN_BYTES, (STOP,)) if is_stream else None,
        )
        for number in range(num_samples)
    ]


def check(samples: Sequence[Sample], num_steps: int) -> None:
    """Check that as many samples as the steps were for have ended, each with its tokens and its text."""
    finished = [sample for sample in samples if sample.finish_reason == "length"]
    assert len(finished) >= NUM_SLOTS * (num_steps // NUM_STEPS_EACH)
    for sample in finished:
        length = sample.params.max_tokens
        assert sample.output_token_ids == [TOKEN_ID] * length
        if sample.output_text is not None:
            assert sample.output_text.text == " word" * length
