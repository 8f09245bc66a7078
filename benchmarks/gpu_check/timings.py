"""How fast it is: bandwidth, graphs, decoding, prompts, the first token. Tweets are in `tweets`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from benchmarks.gpu_check.engine import open_engine, run_all
from benchmarks.gpu_check.replays import CONTEXT, Replay, step_parts
from benchmarks.gpu_check.report import Result, Skipped, judged, measured
from benchmarks.gpu_check.subject import Subject, fixed_length
from benchmarks.measure.bounds import step_bytes
from benchmarks.measure.checkpoints import SEED
from benchmarks.measure.comparison import Spread, seconds_of
from benchmarks.measure.environment import read_gpus
from benchmarks.measure.fresh_processes import FIRST_TOKEN, first_token_s, in_fresh_processes
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS, NOT_FINITE
from hgt_infer.engine.sequence import SequenceParams

FIRST_TOKEN_TIMEOUT_S = 30
COPY_BYTES = 1 << 30  # many times what a GPU's level 2 cache holds
SETTINGS: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}


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
                    device.stream.copy_within(addresses[1], addresses[0], num_bytes)
                device.stream.synchronize()

            with device.at_work():
                copy()
                seconds = [s / num_copies / num_bytes for s in seconds_of(copy, 5)]
    rates = [2 / seconds_per_byte for seconds_per_byte in seconds]
    subject.notes["bandwidth"] = statistics.median(rates)
    figure = f"{Spread.of([rate / 1e9 for rate in rates]).shown(0)} GB/s"
    says = "copies within the device, bytes read and written"
    return measured("bandwidth", figure, says, bytes_per_s=rates)


def time_graphs(subject: Subject) -> Iterator[Result]:
    """The model and the samplers by themselves, and what share of a step sampling takes."""
    if not subject.is_cuda:
        raise Skipped("graphs are captured on CUDA")
    scale = subject.scale
    for num_rows in scale.graph_rows:
        with step_parts(subject, num_rows) as parts:
            names = ("model", "top_k 50", "top_p 0.95", "temperature 1")
            replays = {
                name: parts.time(name, num_rounds=scale.num_rounds, warmup_s=scale.warmup_s) for name in names
            }
            has_logits = bool(np.isfinite(parts.read("logits")).all())
            num_unresolved = int((parts.read("token_ids") == NOT_FINITE).sum())
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
    figure = replay.spread_us.shown(unit="µs")
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
    return (_decode(subject, batch_size) for batch_size in subject.scale.batch_sizes)


def _decode(subject: Subject, batch_size: int) -> Result:
    num_new_tokens = subject.scale.num_new_tokens
    prompts = (subject.prompts(batch_size, length=4, seed=seed) for seed in count())  # none is in the cache
    params = [fixed_length(num_new_tokens, seed=n, **SETTINGS) for n in range(batch_size)]
    with subject.generator(num_slots=batch_size) as generator:
        lengths = [len(output.prompt_token_ids) for output in generator.generate(next(prompts), params)]
        seconds = seconds_of(lambda: generator.generate(next(prompts), params), subject.scale.num_rounds)
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
        f"{Spread.of(rates).shown(0)} tok/s",
        says,
        seconds=seconds,
        tokens_per_s=rates,
        num_steps=num_steps,
        mean_context=statistics.mean(contexts),
        bound_s=bound_s,
        bound_share=None if bound_s is None else bound_s / step_s,
        gpus=gpus,
    )


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
        with open_engine(
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
                    run_all(made, prompts, params)

                run_once()
                found[way][length] = seconds_of(run_once, 3)
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


def time_first_token(subject: Subject) -> Result:
    """From `import` to the first token in fresh processes; the files are in the page cache."""
    rounds = in_fresh_processes(
        FIRST_TOKEN,
        str(subject.artifact.path),
        subject.device,
        num_rounds=min(3, max(1, subject.scale.num_rounds - 1)),
        timeout_s=FIRST_TOKEN_TIMEOUT_S,
    )
    parts = ", ".join(
        f"{name.removesuffix('_s')} {statistics.median(times[name] for times in rounds):.2f} s"
        for name in rounds[0]
    )
    whole = Spread.of([first_token_s(times) for times in rounds])
    return measured("first token", f"{whole.shown(2)} s", f"fresh process: {parts}", rounds=rounds)
