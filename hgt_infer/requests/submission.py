"""How a call's sequences reach the engine and come back: waiting, streaming or async.

What they are is `prompt_group`'s; which one runs when is `engine.scheduler`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator
from queue import SimpleQueue

from hgt_infer.engine.engine import Engine
from hgt_infer.engine.sequence import Request, Sequence
from hgt_infer.outputs import Delta, GenerationOutput
from hgt_infer.requests.prompt_group import PromptGroup

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


def _submit_all(engine: Engine, request: Request, groups: Collection[PromptGroup]) -> int:
    """Submit all samples of the groups and return how many; QueueFullError where there is no room."""
    engine.check_room(sum(group.num_samples for group in groups))
    sequences = [one for group in groups for one in group.sequences(is_stream=request.is_stream)]
    engine.submit(request, sequences)
    return len(sequences)


def deltas(engine: Engine, groups: Collection[PromptGroup]) -> Iterator[Delta | None]:
    """Submit all samples of the groups, yield None once, then their deltas as they come, interleaved."""
    events: SimpleQueue[Sequence | Delta | BaseException] = SimpleQueue()
    request = Request(events.put, is_stream=True)
    num_unfinished = _submit_all(engine, request, groups)
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
    num_unfinished = _submit_all(engine, request, groups)
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
