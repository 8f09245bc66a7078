"""How a call's prompts become sequences, reach the engine, and come back: waiting, streaming or async.

What a prompt's settings are is `resolve`'s; which sequence runs when is `scheduler`'s.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue

from hgt_infer.artifact.tokenizer import Tokenizer
from hgt_infer.engine.engine import Engine
from hgt_infer.engine.output_text import OutputText
from hgt_infer.engine.sequence import Request, Sequence, SequenceParams
from hgt_infer.outputs import Completion, Delta, GenerationOutput
from hgt_infer.sampling_params import SamplingParams


@dataclass(eq=False, slots=True)
class PromptGroup:
    """One prompt of a call, and its samples.

    Attributes:
        index: which prompt of the call.
        prompt: the text as the caller gave it.
        token_ids: its ids, the checkpoint's prefix included.
        params: settings as the caller gave them.
        resolved: the same with every default resolved.
        tokenizer: decodes the samples.
        finished: samples that have ended, in the order in which they did.
    """

    index: int
    prompt: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    resolved: SequenceParams
    tokenizer: Tokenizer
    finished: list[Sequence] = field(default_factory=list)

    @property
    def num_samples(self) -> int:
        """Samples to generate, of which params.n are returned."""
        return self.params.best_of or self.params.n

    @property
    def is_finished(self) -> bool:
        """Whether every sample has ended."""
        return len(self.finished) == self.num_samples

    def sequences(self, *, is_stream: bool = False) -> Iterator[Sequence]:
        """Make the samples, one at a time; the first one reports the prompt's log-probabilities."""
        params = self.params
        for sample_index in range(self.num_samples):
            output_text = None
            if is_stream or params.stop or params.stop_token_ids:
                output_text = OutputText(
                    self.tokenizer.token_bytes, tuple(params.stop or ()), params.include_stop_str_in_output
                )
            yield Sequence(
                self.token_ids,
                self.resolved,
                sample_index,
                self.index,
                output_text,
                num_unscored=0 if sample_index == 0 else len(self.token_ids),
            )

    def output(self) -> GenerationOutput:
        """What the caller gets, once all samples have ended."""
        sequences = sorted(self.finished, key=lambda sequence: sequence.sample_index)
        prompt_logprobs = None
        if self.resolved.prompt_logprobs is not None:
            prompt_logprobs = (None, *sequences[0].prompt_logprobs)
        if self.num_samples > self.params.n:
            sequences = sorted(sequences, key=_mean_logprob, reverse=True)[: self.params.n]
        completions = tuple(self._completion(sequence) for sequence in sequences)
        return GenerationOutput(self.prompt, self.token_ids, completions, self.resolved.seed, prompt_logprobs)

    def _completion(self, sequence: Sequence) -> Completion:
        assert sequence.finish_reason is not None
        text = sequence.output_text
        has_logprobs = self.resolved.logprobs is not None
        return Completion(
            index=sequence.sample_index,
            text=self.tokenizer.decode(sequence.output_token_ids) if text is None else text.text,
            token_ids=tuple(sequence.output_token_ids),
            finish_reason=sequence.finish_reason,
            stop_reason=sequence.stop_reason,
            logprobs=tuple(sequence.logprobs) if self.params.logprobs is not None else None,
            cumulative_logprob=_cumulative_logprob(sequence) if has_logprobs else None,
        )


def _cumulative_logprob(sequence: Sequence) -> float:
    return math.fsum(token.logprob for token in sequence.logprobs)


def _mean_logprob(sequence: Sequence) -> float:
    return _cumulative_logprob(sequence) / len(sequence.logprobs)


IN_FLIGHT_PER_SLOT = 4
"""Sequences of a call that wait or run at once, for each slot: enough to refill all slots while the calling
thread takes what has ended."""


def run(
    engine: Engine, sequences: Iterator[Sequence | None], *, max_in_flight: int | None = None
) -> Iterator[Sequence]:
    """Run sequences and yield each one as it ends.

    Args:
        engine: where they run.
        sequences: taken only as there is room; None where the next one has to wait for another to end.
        max_in_flight: sequences that wait or run at once; None is IN_FLIGHT_PER_SLOT for each slot.
    """
    max_in_flight = max_in_flight or IN_FLIGHT_PER_SLOT * engine.num_slots
    events: SimpleQueue[Sequence | Delta | BaseException] = SimpleQueue()
    request = Request(events.put)
    num_in_flight = 0
    unsent: list[Sequence] = []
    try:
        while True:
            while num_in_flight + len(unsent) < max_in_flight and (sequence := next(sequences, None)):
                unsent.append(sequence)
            if unsent:
                num_sent = engine.submit_some(request, unsent)
                num_in_flight += num_sent
                del unsent[:num_sent]
            if num_in_flight == 0:
                return
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            assert isinstance(event, Sequence)
            num_in_flight -= 1
            yield event
    finally:
        if num_in_flight:
            engine.cancel(request)


def run_groups(
    engine: Engine,
    groups: Iterable[PromptGroup],
    *,
    in_order: bool,
    on_finish: Callable[[], object] = lambda: None,
) -> Iterator[PromptGroup]:
    """Run the samples of groups and yield each group once its samples have ended.

    Args:
        engine: where they run.
        groups: taken only as there is room: at most IN_FLIGHT_PER_SLOT for each slot before one is yielded.
        in_order: yield in the order of the groups instead of that of their ends.
        on_finish: called as each sample ends.
    """
    max_taken = IN_FLIGHT_PER_SLOT * engine.num_slots
    taken: dict[int, PromptGroup] = {}  # and not yielded, in their order

    def sequences() -> Iterator[Sequence | None]:
        for group in groups:
            while len(taken) >= max_taken:
                yield None
            taken[group.index] = group
            yield from group.sequences()

    for sequence in run(engine, sequences()):
        group = taken[sequence.prompt_index]
        group.finished.append(sequence)
        on_finish()
        if not in_order and group.is_finished:
            yield taken.pop(group.index)
        while in_order and taken and (first := next(iter(taken.values()))).is_finished:
            yield taken.pop(first.index)


def run_all(
    engine: Engine, groups: list[PromptGroup], on_finish: Callable[[], object] = lambda: None
) -> list[GenerationOutput]:
    """Run all samples of the groups, wait for them, and return an output for each group, in their order."""
    for _ in run_groups(engine, groups, in_order=False, on_finish=on_finish):
        pass
    return [group.output() for group in groups]


def _all_sequences(engine: Engine, groups: Collection[PromptGroup], *, is_stream: bool) -> list[Sequence]:
    """Make all samples of the groups, or raise QueueFullError where the engine has no room for so many."""
    engine.check_room(sum(group.num_samples for group in groups))
    return [sequence for group in groups for sequence in group.sequences(is_stream=is_stream)]


def deltas(engine: Engine, groups: Collection[PromptGroup]) -> Iterator[Delta | None]:
    """Submit all samples of the groups, yield None once, then their deltas as they come, interleaved."""
    events: SimpleQueue[Sequence | Delta | BaseException] = SimpleQueue()
    request = Request(events.put, is_stream=True)
    sequences = _all_sequences(engine, groups, is_stream=True)
    num_unfinished = len(sequences)
    engine.submit(request, sequences)
    try:
        yield None
        while num_unfinished:
            event = events.get()
            if isinstance(event, BaseException):
                raise event
            assert isinstance(event, Delta)
            num_unfinished -= event.finish_reason is not None
            yield event
    finally:
        if num_unfinished:
            engine.cancel(request)


async def async_events(
    engine: Engine, groups: Collection[PromptGroup], *, is_stream: bool
) -> AsyncGenerator[Sequence | Delta, None]:
    """Submit all samples of the groups and yield what comes of them, without blocking the event loop."""
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Sequence | Delta | BaseException] = asyncio.Queue()
    request = Request(lambda event: loop.call_soon_threadsafe(events.put_nowait, event), is_stream=is_stream)
    sequences = _all_sequences(engine, groups, is_stream=is_stream)
    num_unfinished = len(sequences)
    engine.submit(request, sequences)
    try:
        while num_unfinished:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            num_unfinished -= event.finish_reason is not None
            yield event
    finally:
        if num_unfinished:
            engine.cancel(request)
