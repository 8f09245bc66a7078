"""Whether something else ran while a figure was measured: wait until nothing does, see it, and time again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure.comparison import turns

PROC = Path("/proc")
DISTURBED_SHARE = 0.03  # of the processor time that the machine has
DISTURBED_S = 0.05  # clock ticks are 10 ms, and every count is rounded to them
MAX_REPEATS = 2
"""Of a disturbed timing."""

Value = TypeVar("Value")


@dataclass
class Watched:
    """What ran beside a measurement.

    Attributes:
        num_cpus: of the machine.
        wall_s: how long the measurement took.
        others_s: processor time of processes that are not ours, and of the kernel for them.
        steal_s: processor time that the hypervisor gave to other machines.
    """

    num_cpus: int = 1
    wall_s: float = 0.0
    others_s: float = 0.0
    steal_s: float = 0.0

    @property
    def lost_s(self) -> float:
        """Processor time that was not there for us, in seconds."""
        return self.others_s + self.steal_s

    @property
    def is_disturbed(self) -> bool:
        """More than 3 % of the machine's processor time was lost, and more than the counts' rounding."""
        return self.lost_s > max(DISTURBED_S, DISTURBED_SHARE * self.num_cpus * self.wall_s)


def wait_for_quiet(
    limit: float = 0.3,
    timeout_s: float = 600.0,
    *,
    interval_s: float = 5.0,
    load: Callable[[], float] = lambda: os.getloadavg()[0],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Wait until the load average of the last minute is under the limit.

    What this process did itself counts too: two minutes after work on two processors the load is 0.3.

    Returns:
        load: the last one read. waited_s: seconds. is_quiet: whether the load is under the limit; it is not
        where the time has run out.
    """
    start = clock()
    last = load()
    if last >= limit:
        print(f"load {last:.2f}: waiting until it is under {limit:g}", file=sys.stderr, flush=True)
    while last >= limit and clock() - start < timeout_s:
        sleep(interval_s)
        last = load()
    return {"load": last, "waited_s": clock() - start, "is_quiet": last < limit}


@contextmanager
def watch(pids: Collection[int] = ()) -> Iterator[Watched]:
    """See what else runs inside the block; the values are there when it ends.

    Ours are this process, and the given ones with all of their descendants. Other children of this process
    are not ours: a side that is not measured has to sleep. The time of a descendant that ends inside the
    block counts once its parent has waited for it.

    Where Linux's /proc/stat is missing nothing counts as disturbed.

    >>> with watch() as watched:
    ...     total = sum(range(1000))
    >>> watched.wall_s > 0
    True
    """
    watched = Watched()
    ours = {os.getpid(), *pids}
    # The machine's time is read inside of the span of ours, so that these readings count as ours.
    before, ours = _process_times(ours)
    machine_before = _machine_times()
    start = time.perf_counter()
    yield watched
    watched.wall_s = time.perf_counter() - start
    machine_after = _machine_times()
    after, _ = _process_times(ours)
    if machine_before is not None and machine_after is not None:
        busy_s, steal_s = (b - a for a, b in zip(machine_before[:2], machine_after[:2], strict=True))
        watched.num_cpus = machine_after[2]
        watched.others_s = max(0.0, busy_s - (after - before))
        watched.steal_s = max(0.0, steal_s)


def take_quiet_turns(
    timers: Mapping[str, Callable[[], Value]],
    *,
    num_rounds: int,
    pids: Callable[[str], Collection[int]] = lambda name: (),
) -> tuple[dict[str, list[Value]], dict[str, list[dict[str, Any]]]]:
    """Call the timers like comparison.take_turns, and repeat each timing that was disturbed at once.

    After MAX_REPEATS that are disturbed too, the one that lost the least processor time counts.

    Args:
        timers: each measures something, and returns it.
        num_rounds: timings of each that count.
        pids: gives the processes that work for a timer, see watch.

    Returns:
        What counts of each round, and the timings that were disturbed (round, how long it took as wall_s,
        others_s, steal_s and whether it counts all the same, is_kept); both by the timer's name.
    """
    values: dict[str, list[Value]] = {name: [] for name in timers}
    disturbed: dict[str, list[dict[str, Any]]] = {name: [] for name in timers}
    for number, name in turns(timers, num_rounds):
        tries: list[tuple[Value, Watched]] = []
        while len(tries) <= MAX_REPEATS and all(watched.is_disturbed for _, watched in tries):
            with watch(pids(name)) as watched:
                value = timers[name]()
            tries.append((value, watched))
        kept = min(tries, key=lambda timing: (timing[1].is_disturbed, timing[1].lost_s))
        values[name].append(kept[0])
        disturbed[name] += [
            {
                "round": number,
                "wall_s": timing[1].wall_s,
                "others_s": timing[1].others_s,
                "steal_s": timing[1].steal_s,
                "is_kept": timing is kept,
            }
            for timing in tries
            if timing[1].is_disturbed
        ]
    return values, disturbed


def _machine_times() -> tuple[float, float, int] | None:
    """Seconds that the processors were busy, seconds stolen, and their number; None without /proc/stat."""
    try:
        lines = [line.split() for line in (PROC / "stat").read_text().splitlines() if line.startswith("cpu")]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, lines[0][1:9])
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / ticks_per_s, steal / ticks_per_s, len(lines) - 1


def _process_times(pids: Collection[int]) -> tuple[float, set[int]]:
    """Seconds of the processes and, but for this one, of their descendants; and the pids of them all."""
    ticks: dict[int, int] = {}
    children: dict[int, list[int]] = {}
    for path in PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()  # the name before it may hold spaces
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = sum(map(int, fields[11:15]))  # user and system, its own and of children that have ended
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            if pid != os.getpid():
                left += children.get(pid, [])
    return sum(ticks.get(pid, 0) for pid in found) / os.sysconf("SC_CLK_TCK"), found
