"""WaitingQueue: the requests whose sequences wait for a slot; the schedulers of all devices share it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from hgt_infer.engine.sequence import Request, Sequence


class WaitingQueue:
    """Round-robin over requests, in the order of their arrival: one sequence of each, then the next of each.

    A request's own sequences keep their order. So a request for 500 samples delays another one by a
    sequence at a time, not by 500.

    Attributes:
        requests: those with waiting sequences; the first one's sequence is the next to run.
        num_waiting: sequences of all requests.
    """

    def __init__(self) -> None:
        self.requests: deque[Request] = deque()
        self.num_waiting = 0

    def add(self, request: Request, sequences: Collection[Sequence]) -> None:
        """Put sequences behind those of their request; a new request goes to the end."""
        if sequences and not request.waiting:
            self.requests.append(request)
        for sequence in sequences:
            sequence.request = request
        request.waiting.extend(sequences)
        self.num_waiting += len(sequences)

    def peek(self) -> Sequence | None:
        """The sequence that `pop` returns next; None where nothing waits."""
        return self.requests[0].waiting[0] if self.requests else None

    def pop(self) -> Sequence:
        """Remove and return the next sequence; its request goes to the end if it has more."""
        request = self.requests.popleft()
        sequence = request.waiting.popleft()
        if request.waiting:
            self.requests.append(request)
        self.num_waiting -= 1
        return sequence

    def remove(self, request: Request) -> list[Sequence]:
        """Remove all of a request's sequences and return them."""
        removed = list(request.waiting)
        if removed:
            self.requests.remove(request)
            request.waiting.clear()
            self.num_waiting -= len(removed)
        return removed
