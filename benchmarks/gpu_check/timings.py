"""How fast it is: bandwidth, graphs, decoding, steps_per_sync, prompts, tweets, the host's work."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.gpu_check.figures import step_bytes
from benchmarks.gpu_check.lanes import engine, run_all, samples
from benchmarks.gpu_check.replays import CONTEXT, Replay, step_parts
from benchmarks.gpu_check.report import Result, Skipped, judged, measured
from benchmarks.gpu_check.subject import REPOSITORY, SEED, Subject, fixed_length, token_ids
from benchmarks.measure.comparison import Spread
from benchmarks.measure.environment import read_gpus
from hgt_infer import SamplingParams
from hgt_infer.cuda import device as cuda
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS, UNRESOLVED
from hgt_infer.engine.sequence import SequenceParams

COPY_BYTES = 1 << 30  # many times what a GPU's level 2 cache holds
SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
TWEETS_SLOTS = 256

FIRST_TOKEN_TIMEOUT_S = 30
FIRST_TOKEN = """
import json, sys, time
start = time.perf_counter()
from hgt_infer import Generator, SamplingParams
imported = time.perf_counter()
generator = Generator(sys.argv[1], device=sys.argv[2])
loaded = time.perf_counter()
generator.generate("abcd", SamplingParams(max_tokens=1))
end = time.perf_counter()
generator.generate("abcd", SamplingParams(max_tokens=1))
again = time.perf_counter()
times = {"import_s": imported - start, "load_s": loaded - imported, "generate_s": end - loaded}
print(json.dumps(times | {"again_s": again - end}))
generator.close()
"""


def seconds_of(function: Callable[[], object], num_rounds: int) -> list[float]:
    """Time a function that many times."""
    seconds = []
    for _ in range(num_rounds):
        start_s = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start_s)
    return seconds


def shown(values: Sequence[float], digits: int = 1) -> str:
    """Median and range: "12.3 (12.1–12.9)"."""
    spread = Spread.of(values)
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f})"


def measure_bandwidth(subject: Subject) -> Result:
    """Copy within the device; bytes read and bytes written both count. It is the bound's denominator."""
    num_copies, num_bytes = 10, COPY_BYTES
    if not subject.is_cuda:
        source, target = np.zeros(num_bytes >> 4, np.uint8), np.ones(num_bytes >> 4, np.uint8)
        seconds = [s / source.nbytes for s in seconds_of(lambda: np.copyto(target, source), 3)]
    else:
        with subject.open_device() as device:
            addresses = [device.allocate(num_bytes) for _ in range(2)]

            def copy() -> None:
                for _ in range(num_copies):
                    device.copy_within(addresses[1], addresses[0], num_bytes)
                device.synchronize()

            with device.at_work():
                copy()
                seconds = [s / num_copies / num_bytes for s in seconds_of(copy, 5)]
    rates = [2 / seconds_per_byte for seconds_per_byte in seconds]
    subject.notes["bandwidth"] = statistics.median(rates)
    figure = f"{shown([rate / 1e9 for rate in rates], 0)} GB/s"
    says = "copies within the device, bytes read and written"
    return measured("bandwidth", figure, says, bytes_per_s=rates)


def time_graphs(subject: Subject) -> Iterator[Result]:
    """The model and the samplers by themselves, and what share of a step sampling takes."""
    if not subject.is_cuda:
        raise Skipped("graphs are captured on CUDA")
    for num_rows in subject.scale.graph_rows:
        with step_parts(subject, num_rows) as parts:
            names = ("model", "top_k 50", "top_p 0.95", "temperature 1")
            replays = {name: parts.time(name, num_rounds=subject.scale.num_rounds) for name in names}
            has_logits = bool(np.isfinite(parts.read("logits")).all())
            num_unresolved = int((parts.read("token_ids") == UNRESOLVED).sum())
        model_s, top_k_s = (statistics.median(replays[name].seconds) for name in ("model", "top_k 50"))
        subject.notes.setdefault("step_s", {})[str(num_rows)] = model_s + top_k_s
        bound_s = _bound_s(subject, [CONTEXT] * num_rows)
        says = f"replayed in a row at context {CONTEXT}"
        if bound_s is not None:
            says += f"; memory allows {1e6 * bound_s:.0f} µs: {bound_s / model_s:.0%} of that speed"
        yield _graph_result("model graph", replays["model"], says, is_good=has_logits)
        for name in names[1:]:
            share = replays[name].spread_us.median / (1e6 * model_s + replays[name].spread_us.median)
            says = f"{share:.0%} of a step of {num_rows}, {num_unresolved} rows unresolved in the last graph"
            yield _graph_result(f"sampler: {name}", replays[name], says)


def _graph_result(name: str, replay: Replay, says: str, *, is_good: bool = True) -> Result:
    spread = replay.spread_us
    figure = f"{spread.median:,.1f} µs ({spread.low:,.1f}–{spread.high:,.1f})"
    values = {"num_rows": replay.num_rows, "seconds": replay.seconds, "launch_s": replay.launch_s}
    if not is_good:
        return judged(f"{name}, {replay.num_rows}", False, figure, "logits are not finite", **values)
    return measured(
        f"{name}, {replay.num_rows}",
        figure,
        f"{says}; the host queues it in {1e6 * replay.launch_s:.0f} µs",
        **values,
    )


def _bound_s(subject: Subject, context_lengths: Sequence[int]) -> float | None:
    """Seconds that memory needs for a step, by the bandwidth that was measured; None before it was."""
    if subject.bandwidth is None:
        return None
    artifact = subject.artifact
    logits_bytes = artifact.config.vocab_size * np.dtype(artifact.float_type).itemsize
    num_bytes = step_bytes(subject.weights_bytes, subject.bytes_per_token, context_lengths, logits_bytes)
    return num_bytes / subject.bandwidth


def time_decode(subject: Subject) -> Iterator[Result]:
    """Text to text with as many slots as requests: prompts of 4 letters, so that the mean context is 100."""
    for batch_size in subject.scale.batch_sizes:
        yield _decode(subject, batch_size)


def _decode(subject: Subject, batch_size: int) -> Result:
    num_new_tokens = subject.scale.num_new_tokens
    prompts = subject.prompts(batch_size, length=4)
    params = [fixed_length(num_new_tokens, seed=n, **SETTINGS) for n in range(batch_size)]
    with subject.generator(num_slots=batch_size) as generator:
        lengths = [len(output.prompt_token_ids) for output in generator.generate(prompts, params)]
        seconds = seconds_of(lambda: generator.generate(prompts, params), subject.scale.num_rounds)
        gpus = read_gpus()  # clocks that are still warm
    num_steps = num_new_tokens + max(lengths) - 1
    rates = [batch_size * num_new_tokens / s for s in seconds]
    step_s = statistics.median(seconds) / num_steps
    contexts = [round(length + num_new_tokens / 2) for length in lengths]
    bound_s = _bound_s(subject, contexts)
    says = f"{1e6 * step_s:,.0f} µs a step, mean context {statistics.mean(contexts):.0f}"
    if bound_s is not None:
        says += f"; memory allows {1e6 * bound_s:,.0f} µs: {bound_s / step_s:.0%} of that speed"
    return measured(
        f"decode, batch {batch_size}",
        f"{shown(rates, 0)} tok/s",
        says,
        seconds=seconds,
        tokens_per_s=rates,
        num_steps=num_steps,
        mean_context=statistics.mean(contexts),
        bound_s=bound_s,
        bound_share=None if bound_s is None else bound_s / step_s,
        gpus=gpus,
    )


def time_steps_per_sync(subject: Subject) -> Result:
    """Tweets at several steps_per_sync: more hide more of the host's work and waste more rows."""
    num_slots = subject.scale.sweep_slots
    found = {steps: _tweets_at(subject, num_slots, steps) for steps in subject.scale.sweep_steps}
    rates = {steps: [values["num_tokens"] / s for s in values["seconds"]] for steps, values in found.items()}
    best = max(rates, key=lambda steps: statistics.median(rates[steps]))
    says = ", ".join(
        f"{steps}: {shown(rates[steps], 0)} ({values['wasted_share']:.1%} wasted)"
        for steps, values in found.items()
    )
    figure = f"best {best}: {shown(rates[best], 0)} tok/s"
    values = {str(steps): values for steps, values in found.items()}
    return measured(f"steps_per_sync, {num_slots}", figure, says, **values)


def _tweets_at(subject: Subject, num_slots: int, steps_per_sync: int) -> dict[str, Any]:
    workload = subject.tweets_workload(8 * num_slots)
    prompts, params = list(workload.prompts), tweet_params(workload.lengths)
    num_rounds = 3
    with subject.generator(num_slots=num_slots, steps_per_sync=steps_per_sync) as generator:
        generator.generate(prompts, params)
        before = generator.stats()
        seconds = seconds_of(lambda: generator.generate(prompts, params), num_rounds)
        after = generator.stats()
    num_wasted = after.wasted_rows - before.wasted_rows
    return {
        "seconds": seconds,
        "num_tokens": workload.num_tokens,
        "wasted_rows": num_wasted,
        "wasted_share": num_wasted / (num_wasted + num_rounds * workload.num_tokens),
    }


def tweet_params(lengths: Sequence[int]) -> list[SamplingParams]:
    """Settings of each request of the tweets workload."""
    return [fixed_length(length, seed=number, **SETTINGS) for number, length in enumerate(lengths)]


def time_prompts(subject: Subject) -> list[Result]:
    """Prompts of one length, computed by steps beside running sequences, and by runs of their own."""
    num_slots = min(64, subject.scale.sweep_slots) if subject.is_cuda else 4
    num_prompts, num_new_tokens = 2 * num_slots, 16
    rng = np.random.default_rng(SEED)
    limit = subject.artifact.config.n_positions - num_new_tokens
    lengths = [length for length in subject.scale.prompt_lengths if length <= limit]
    found: dict[str, dict[int, list[float]]] = {"fed": {}, "prefilled": {}}
    for way, max_fed_tokens in (("fed", MAX_FED_TOKENS), ("prefilled", 1)):
        kind: Any = "captured" if subject.is_cuda else "eager"
        with engine(
            subject,
            kind,
            num_slots=num_slots,
            max_length=limit + num_new_tokens,
            max_fed_tokens=max_fed_tokens,
        ) as made:
            for length in lengths:
                if way == "fed" and length > MAX_FED_TOKENS:
                    continue

                def run_once(length: int = length, made: Any = made) -> None:
                    prompts = [tuple(row) for row in rng.integers(0, 256, (num_prompts, length)).tolist()]
                    params = [
                        SequenceParams(max_tokens=num_new_tokens, seed=n, top_k=50)
                        for n in range(num_prompts)
                    ]
                    run_all(made, samples(prompts, params))

                run_once()
                found[way][length] = seconds_of(run_once, 3)
            del made
    medians = {way: {n: statistics.median(s) for n, s in by.items()} for way, by in found.items()}
    faster = [n for n in medians["fed"] if medians["fed"][n] <= medians["prefilled"][n]]
    figure = f"feeding is faster up to {max(faster)} tokens" if faster else "prefilling is always faster"
    says = ", ".join(
        f"{n}: {1e3 * medians['fed'][n]:.1f} / {1e3 * prefilled:.1f} ms"
        for n, prefilled in medians["prefilled"].items()
        if n in medians["fed"]
    )
    says = f"{num_prompts} prompts, {num_slots} slots, {num_new_tokens} tokens each; fed / prefilled: {says}"
    values = {way: {str(n): seconds for n, seconds in by.items()} for way, by in found.items()}
    return [measured("fed and prefilled", figure, says, **values)]


def time_tweets(subject: Subject) -> Iterator[Result]:
    """The tweets workload, with what the engine's thread does meanwhile."""
    workload = subject.tweets_workload(subject.scale.num_tweets)
    num_slots = TWEETS_SLOTS if subject.is_cuda else 16
    prompts, params = list(workload.prompts), tweet_params(workload.lengths)
    with subject.generator(num_slots=num_slots) as generator:
        count = len(generator.generate(prompts[: 2 * num_slots], params[: 2 * num_slots]))
        assert count <= 2 * num_slots
        seconds = seconds_of(lambda: generator.generate(prompts, params), 2)
        before = generator.stats()
        with waiting_for_events() as waited, EngineClock() as clock:
            start_s = time.perf_counter()
            outputs = generator.generate(prompts, params)
            seconds.append(time.perf_counter() - start_s)
        stats = generator.stats()
    num_tokens = sum(map(len, token_ids(outputs)))
    if num_tokens != workload.num_tokens:
        raise ValueError(f"{num_tokens} tokens came, not {workload.num_tokens}")
    rates = [num_tokens / s for s in seconds]
    num_steps = stats.steps - before.steps
    busy_s = max(0.0, clock.seconds - sum(waited))
    yield measured(
        "tweets",
        f"{shown(rates, 0)} tok/s",
        f"{len(prompts):,} requests as long as tweets, {num_slots} slots, text to text; "
        f"{stats.occupancy_while_waiting or 0:.1%} of the slots in use while requests waited",
        seconds=seconds,
        tokens_per_s=rates,
        num_tokens=num_tokens,
        num_steps=num_steps,
        occupancy=stats.occupancy_while_waiting,
        wasted_rows=stats.wasted_rows - before.wasted_rows,
    )
    yield measured(
        "host work",
        f"{1e6 * busy_s / num_tokens:.2f} µs a token",
        f"processor time of the engine's thread without waiting: {busy_s / seconds[-1]:.0%} of the time; "
        f"{1e6 * busy_s / max(1, num_steps):.0f} µs a step of {num_slots}",
        thread_s=clock.seconds,
        waited_s=sum(waited),
        wall_s=seconds[-1],
    )
    device_s = subject.step_s(num_slots)
    if device_s is not None:
        idle = max(0.0, 1 - num_steps * device_s / seconds[-1])
        says = (
            f"{num_steps:,} steps of {1e6 * device_s:.0f} µs, replayed by themselves, in {seconds[-1]:.2f} s"
        )
        yield measured("GPU idle", f"{idle:.0%}", says, idle_share=idle, step_s=device_s)


@contextmanager
def waiting_for_events() -> Iterator[list[float]]:
    """Seconds of each wait for a device's event meanwhile: they spin, and count as processor time."""
    waits: list[float] = []
    wait = cuda.CudaEvent.wait

    def timed_wait(event: cuda.CudaEvent) -> None:
        start_s = time.thread_time()
        wait(event)
        waits.append(time.thread_time() - start_s)

    cuda.CudaEvent.wait = timed_wait  # type: ignore[method-assign,assignment]
    try:
        yield waits
    finally:
        cuda.CudaEvent.wait = wait  # type: ignore[method-assign]


class EngineClock:
    """Processor time of the engine's threads between entering and leaving, in `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def _now_s(self) -> float:
        if not hasattr(time, "pthread_getcpuclockid"):
            raise Skipped("the system has no clock of another thread")
        threads = [t for t in threading.enumerate() if t.name.startswith("hgt_infer engine")]
        clocks = [time.pthread_getcpuclockid(t.ident) for t in threads if t.ident is not None]
        return sum(time.clock_gettime(clock) for clock in clocks)

    def __enter__(self) -> EngineClock:
        self._start_s = self._now_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._now_s() - self._start_s


def time_first_token(subject: Subject) -> Result:
    """From `import` to the first token in fresh processes; the files are in the page cache."""
    rounds = []
    for _ in range(1 + min(3, max(1, subject.scale.num_rounds - 1))):
        process = subprocess.run(
            [sys.executable, "-c", FIRST_TOKEN, str(subject.artifact.path), subject.device],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
            timeout=FIRST_TOKEN_TIMEOUT_S,
        )
        if process.returncode != 0:
            raise RuntimeError(f"exit {process.returncode}: {process.stderr.strip().rpartition(chr(10))[2]}")
        rounds.append(json.loads(process.stdout.strip().splitlines()[-1]))
    rounds = rounds[1:]
    totals = [times["import_s"] + times["load_s"] + times["generate_s"] for times in rounds]
    parts = ", ".join(
        f"{name.removesuffix('_s')} {statistics.median(times[name] for times in rounds):.2f} s"
        for name in rounds[0]
    )
    return measured("first token", f"{shown(totals, 2)} s", f"fresh process: {parts}", rounds=rounds)
