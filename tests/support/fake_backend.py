"""A side of a comparison that computes nothing, and two workloads of a few tokens."""

from __future__ import annotations

from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload

TINY = Workload(prompts=("ab", "cd"), prompt_token_ids=((0, 1), (2, 3)), n=2, num_new_tokens=5)
MIXED = MixedWorkload(
    prompts=("a", "bcd", "ef"), prompt_token_ids=((0,), (1, 2, 3), (4, 5)), lengths=(1, 4, 3)
)


class FakeBackend:
    """Takes a given time for each call, on a clock that several share."""

    def __init__(self, name: str, clock: list[float], step: float, calls: list[str]) -> None:
        self.name, self.clock, self.step, self.calls = name, clock, step, calls

    def generate(self, workload: Workload | MixedWorkload, *, greedy: bool = False) -> TokenIds:
        self.clock[0] += self.step
        self.calls.append(self.name)
        return [(7,) * length for length in workload.lengths for _ in range(workload.n)]
