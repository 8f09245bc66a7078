"""Beside transformers on the same GPU: fp16, SDPA attention, static batches at their best size.

`python -m benchmarks.gpu_check.peers MODEL DEVICE NUM_NEW_TOKENS BATCH_SIZE…` times its compiled generate, in
a process of its own that can be ended: compiling may take long.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from benchmarks.gpu_check.children import end_with_parent, run_child
from benchmarks.gpu_check.figures import agreement
from benchmarks.gpu_check.report import Result, Skipped, judged, measured
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids
from benchmarks.gpu_check.timings import SETTINGS
from benchmarks.gpu_check.tweets import TWEETS_SLOTS
from benchmarks.measure.comparison import Spread, compare, seconds_of, seconds_of_workload
from benchmarks.measure.workloads import MixedWorkload, TokenIds, Workload
from benchmarks.peers.backends import StaticBatches, Transformers
from hgt_infer import Generator

FP16_NEAR_TIE = 0.1  # in logits: what rounding in fp16 may move, see export.verify.TOLERANCES
NUM_GATE_REQUESTS = 64
COMPILED_BATCHES = (1, 128)
COMPILED_TIMEOUT_S = 75


class GpuTransformers(Transformers):
    """transformers' `generate` in half precision on a GPU (in fp32 on a CPU), with SDPA attention."""

    def __init__(self, model: str, device: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        self._take(
            AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa"), device
        )


class Ours:
    """hgt_infer behind the same method, from text to text."""

    name = "hgt_infer"

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def generate(self, workload: Workload | MixedWorkload, *, greedy: bool = False) -> TokenIds:
        settings = SETTINGS | ({"temperature": 0.0} if greedy else {})
        params = [fixed_length(length, seed=n, **settings) for n, length in enumerate(workload.lengths)]
        return token_ids(self.generator.generate(list(workload.prompts), params))


@contextmanager
def transformers(subject: Subject) -> Iterator[GpuTransformers]:
    """transformers' model on the subject's device; Skipped where it cannot be had."""
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise Skipped(f"{name} is not installed")
    import torch

    if subject.is_cuda and not torch.cuda.is_available():
        raise Skipped(f"torch {torch.__version__} sees no GPU")
    model = GpuTransformers(str(subject.checkpoint), subject.device)
    try:
        yield model
    finally:
        model.model = None
        if subject.is_cuda:
            torch.cuda.empty_cache()


def compare_peers(subject: Subject) -> Iterator[Result]:
    """The same greedy tokens first; then one request at a time, and tweets in static batches."""
    scale = subject.scale
    with transformers(subject) as theirs:
        num_slots = TWEETS_SLOTS if subject.is_cuda else 16
        with subject.generator(num_slots=num_slots) as generator:
            ours = Ours(generator)
            workload = subject.tweets_workload(scale.num_tweets)
            ids = generator.encode(workload.prompts)  # the checkpoint's prefix included
            workload = replace(workload, prompt_token_ids=tuple(ids))
            yield check_gate(ours, theirs, workload.head(NUM_GATE_REQUESTS, max_tokens=40))
            ours.generate(workload)
            yield from compare_tweets(subject, ours, theirs, workload)
        with subject.generator(num_slots=1) as generator:
            yield compare_one(subject, Ours(generator), theirs)


def check_gate(ours: Ours, theirs: GpuTransformers, workload: MixedWorkload) -> Result:
    """Both sides choose the same tokens where nothing is random, up to logits that lie close together."""
    batches = StaticBatches(theirs.generate_padded, NUM_GATE_REQUESTS)
    expected, actual = batches.generate(workload, greedy=True), ours.generate(workload, greedy=True)
    found = agreement(expected, actual)
    margins = [
        max(*theirs.margins(prompt, a), *theirs.margins(prompt, b))
        for prompt, a, b in zip(workload.prompt_token_ids, expected, actual, strict=True)
        if a != b
    ]
    margin = max(margins, default=0.0)
    says = f"greedy tokens beside transformers'; where they differ, logits lie within {margin:.2g}"
    is_good = margin <= FP16_NEAR_TIE
    return judged("same as transformers", is_good, str(found), says, margins=margins, **vars(found))


def compare_one(subject: Subject, ours: Ours, theirs: GpuTransformers) -> Result:
    """One request at a time, in turns."""
    [prompt] = subject.prompts(1, length=4)
    ids = tuple(ours.generator.encode(prompt))
    workload = Workload(prompts=(prompt,), prompt_token_ids=ids, num_new_tokens=128, **SETTINGS)
    found = compare(ours, theirs, workload, num_rounds=min(3, subject.scale.num_rounds), num_warmups=1)
    says = (
        f"{found.tokens_per_s(ours.name):,.0f} beside {found.tokens_per_s(theirs.name):,.0f} tok/s, "
        "generate with its default cache"
    )
    return measured("transformers, batch 1", found.ratio.shown(unit="×"), says, **found.record())


def compare_tweets(
    subject: Subject, ours: Ours, theirs: GpuTransformers, workload: MixedWorkload
) -> Iterator[Result]:
    """Tweets: all requests here; there a part of them, in order of arrival and sorted by length."""
    seconds = [seconds_of_workload(ours, workload)]
    rates: dict[str, float] = {}
    for size, count in subject.scale.peer_batches.items():
        part = workload.head(size * count, max_tokens=1_000)
        side = StaticBatches(theirs.generate_padded, size)
        side.generate(part.head(size, max_tokens=4))
        for order, ordered in {"arrival": part, "sorted": by_length(part)}.items():
            name, their_s = f"{size}, {order}", seconds_of_workload(side, ordered)
            rates[name] = part.num_tokens / their_s
            useful_share = ordered.useful_share(size)
            yield measured(
                f"transformers, {name}",
                f"{rates[name]:,.0f} tok/s",
                f"static batches, {len(part.prompts):,} of the tweets, {useful_share:.0%} of tokens useful",
                seconds=their_s,
                num_requests=len(part.prompts),
                num_tokens=part.num_tokens,
                tokens_per_s=rates[name],
                useful_share=useful_share,
            )
        seconds.append(seconds_of_workload(ours, workload))
    best = max(rates, key=lambda name: rates[name])
    our_rates = [workload.num_tokens / s for s in seconds]
    ratio = Spread.of([rate / rates[best] for rate in our_rates])
    yield measured(
        "tweets, ratio",
        ratio.shown(unit="×"),
        f"{statistics.median(our_rates):,.0f} tok/s for {len(workload.prompts):,}, beside its best, {best}",
        seconds=seconds,
        num_tokens=workload.num_tokens,
        best=best,
    )


def by_length(workload: MixedWorkload) -> MixedWorkload:
    """The requests by the number of tokens that they will have, which nobody knows beforehand."""
    rows = sorted(
        zip(workload.prompts, workload.prompt_token_ids, workload.lengths, strict=True),
        key=lambda row: row[2],
    )
    prompts, ids, lengths = zip(*rows, strict=True)
    return replace(workload, prompts=prompts, prompt_token_ids=ids, lengths=lengths)


def time_compiled(subject: Subject) -> list[Result]:
    """transformers' generate with a static cache, which it compiles; one request, and 128."""
    if not subject.scale.compiles or not subject.is_cuda:
        raise Skipped("only in the whole check, on a GPU: compiling takes long")
    with transformers(subject):
        pass  # or say why not
    child = run_child(
        __name__,
        [str(subject.checkpoint), subject.device, "64", *map(str, COMPILED_BATCHES)],
        timeout_s=COMPILED_TIMEOUT_S,
    )
    if not child.lines:
        raise Skipped(f"transformers' compiled generate gave nothing: {child.error}")
    results = [
        measured(
            f"compiled, batch {values['batch_size']}",
            f"{values['num_tokens'] / statistics.median(values['seconds']):,.0f} tok/s",
            f"transformers, cache_implementation='static', compiled in {values['compile_s']:.0f} s",
            **values,
        )
        for values in child.lines
    ]
    if child.error:
        results.append(Result("compiled: rest", "skipped", says=child.error))
    return results


def main(argv: list[str]) -> int:
    """Print a line of JSON for each batch size."""
    model, device, num_new_tokens, *batch_sizes = argv
    theirs = GpuTransformers(model, device)
    theirs.settings = {"cache_implementation": "static"}
    for batch_size in map(int, batch_sizes):
        workload = Workload(
            prompts=("abcd",) * batch_size,
            prompt_token_ids=tuple((65 + n % 26, 66, 67, 68) for n in range(batch_size)),
            num_new_tokens=int(num_new_tokens),
            **SETTINGS,
        )
        run = partial(theirs.generate, workload)
        compile_s = sum(seconds_of(run, 3))  # they compile and capture
        seconds = seconds_of(run, 3)
        values = {"batch_size": batch_size, "num_tokens": workload.num_tokens, "compile_s": compile_s}
        print(json.dumps(values | {"seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
