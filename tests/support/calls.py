"""Calls of many kinds of settings, and runs of them by a runner and a scheduler, as the engine does."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hgt_infer.artifact.folder import Artifact
from hgt_infer.cuda.device import CudaDevice
from hgt_infer.cuda.runner import CapturedRunner
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS
from hgt_infer.engine.scheduler import Scheduler
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams

MAX_LENGTH = 320
VOCAB_SIZE = 398
END = 7  # ends a sequence; the graph's own end-of-text is another token
EOS = VOCAB_SIZE - 1


class Text:
    """Stands in for an OutputText: ends a sequence at tokens of one residue."""

    def append(self, token_id: int, *, may_stop: bool) -> str | None:
        return "stop" if may_stop and token_id % 16 == 3 else None

    def finish(self) -> None:
        pass


def prefer_even_tokens(token_ids: list[int], logits: Any) -> Any:
    logits[1::2] -= len(token_ids) % 3
    return logits


DEVICE_SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 50, "top_p": 0.9},
    {"top_k": 51},
    {"top_p": 0.95},
    {"top_p": 0.3, "temperature": 1.5},
    {"min_p": 0.1, "temperature": 2.0},
    {"temperature": 3.0},
    {"eos_token_ids": frozenset([EOS]), "min_tokens": 5, "logit_bias": ((EOS, 8.0),)},
    {"eos_token_ids": frozenset([END, EOS])},
    {"eos_token_ids": frozenset()},
    {"stop_token_ids": frozenset(range(3, 100, 4))},
    {"temperature": 60.0, "top_p": 0.7},  # the device fails to draw 1 of 100 tokens
]
"""The device samples these, without adjustments."""

ADJUSTED_SETTINGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.3, "top_k": 20, "temperature": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": 0.3, "temperature": 0.0},
    {"frequency_penalty": 1.1, "top_p": 0.9},
    {"logit_bias": ((5, 4.0), (6, -3.5)), "top_k": 40},
    {"allowed_token_ids": tuple(range(0, VOCAB_SIZE, 3))},
    {"bad_words_ids": ((3,), (5,))},
    {"temperature": 60.0, "top_p": 0.7, "repetition_penalty": 1.2, "presence_penalty": 0.5},
]
"""The device samples these and adjusts logits."""

HOST_SETTINGS: list[dict[str, Any]] = [
    {"logprobs": 0, "top_k": 30},
    {"logprobs": 3, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"typical_p": 0.6},
    {"typical_p": 0.6, "logprobs": 2, "presence_penalty": 1.0},
    {"no_repeat_ngram_size": 2, "temperature": 0.0},
    {"bad_words_ids": ((3,), (5, 6))},
    {"logits_processor": prefer_even_tokens},
    {"logits_processor": prefer_even_tokens, "repetition_penalty": 0.8},
    {"top_k": 300},
    {"stop_token_ids": frozenset(range(0, VOCAB_SIZE, 9)), "min_tokens": 3},
]
"""The host reads the logits of each token."""

ALL_SETTINGS = DEVICE_SETTINGS + ADJUSTED_SETTINGS + HOST_SETTINGS


@dataclass
class Call:
    """A request's sequences to be made, and when it arrives and leaves."""

    prompt: tuple[int, ...]
    num_samples: int
    params: SequenceParams
    has_text: bool = False
    arrival: int = 0  # in batches
    departure: int | None = None
    request: Request = field(default_factory=lambda: Request(lambda event: None))
    error: BaseException | None = None

    def sequences(self) -> list[Sequence]:
        text: Any = Text
        return [
            Sequence(self.prompt, self.params, index, output_text=text() if self.has_text else None)
            for index in range(self.num_samples)
        ]


@dataclass
class Result:
    """What a sequence came to."""

    token_ids: list[int]
    finish_reason: str | None
    stop_reason: str | int | None
    logprobs: list[Any]
    prompt_logprobs: list[Any]


def make_calls(
    rng: random.Random,
    count: int,
    settings: list[dict[str, Any]],
    *,
    lengths: Callable[[random.Random], int],
    max_tokens: int = 40,
    spread: int = 20,
) -> list[Call]:
    calls = []
    for number in range(count):
        length = lengths(rng)
        values: dict[str, Any] = {"eos_token_ids": frozenset([END]), **settings[number % len(settings)]}
        params = SequenceParams(
            max_tokens=rng.randint(1, max_tokens),
            seed=rng.randrange(2**64),
            prompt_logprobs=rng.choice([0, 2]) if rng.random() < 0.1 and length > 1 else None,
            **values,
        )
        prompt = tuple(rng.randrange(VOCAB_SIZE) for _ in range(length))
        if calls and rng.random() < 0.2:
            prompt = rng.choice(calls).prompt
        samples = rng.choice([1, 1, 1, 2, 5])
        calls.append(Call(prompt, samples, params, rng.random() < 0.2, arrival=rng.randrange(spread)))
    return calls


def short(rng: random.Random) -> int:
    return rng.choice([1, 2, 3, 5, 8, 20])


def any_length(rng: random.Random) -> int:
    return rng.choice([1, 2, 4, 9, MAX_FED_TOKENS, MAX_FED_TOKENS + 1, 80, 80, 270])


def run_all(runner: Any, scheduler: Scheduler, calls: list[Call]) -> list[list[Result]]:
    """Run the calls as the engine does: as many runs in flight as the runner takes, prefills alone."""
    sequences = [call.sequences() for call in calls]
    waiting = sorted(range(len(calls)), key=lambda i: calls[i].arrival)
    calls_of = {id(call.request): call for call in calls}
    in_flight: list[Any] = []

    def collect() -> None:
        batch = in_flight.pop(0)
        output = runner.collect()
        assert min(output.num_sampled, output.num_fed, output.num_wasted) >= 0
        for sequence in scheduler.update(batch, output):
            assert sequence.finish_reason is not None
        for sequence, error in output.errors:
            calls_of[id(sequence.request)].error = error
            scheduler.cancel(sequence.request)

    for number in range(100_000):
        while waiting and calls[waiting[0]].arrival <= number:
            index = waiting.pop(0)
            scheduler.waiting.add(calls[index].request, sequences[index])
        for call in calls:
            if call.departure == number:
                scheduler.cancel(call.request)
        batch = scheduler.schedule()
        if batch is not None:
            runner.launch(batch)
            scheduler.launched(batch)
            in_flight.append(batch)
            limit = 1 if batch.is_scored else runner.max_in_flight
            while len(in_flight) >= limit:
                collect()
        elif in_flight:
            collect()
        elif not waiting:
            break
    assert not scheduler.has_unfinished
    return [
        [
            Result(s.output_token_ids, s.finish_reason, s.stop_reason, s.logprobs, s.prompt_logprobs)
            for s in group
        ]
        for group in sequences
    ]


def copied(calls: list[Call]) -> list[Call]:
    return [Call(c.prompt, c.num_samples, c.params, c.has_text, c.arrival, c.departure) for c in calls]


def open_captured(
    artifact: Artifact,
    device: CudaDevice,
    *,
    num_slots: int = 8,
    steps_per_sync: int = 4,
    batch_invariant: bool = True,
) -> tuple[CapturedRunner, Scheduler]:
    """A captured runner, and the scheduler that goes with it."""
    runner = CapturedRunner(
        artifact,
        device,
        num_slots=num_slots,
        max_length=MAX_LENGTH,
        steps_per_sync=steps_per_sync,
        batch_invariant=batch_invariant,
    )
    return runner, Scheduler(
        num_slots, max_fed_tokens=MAX_FED_TOKENS, closes_gaps=False, shares_prefills=not batch_invariant
    )
