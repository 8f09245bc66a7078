"""The first check, of a few seconds: a tiny model goes through every part of the path once, part by part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_check.replays import open_parts
from benchmarks.gpu_check.report import Result, judged
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids
from benchmarks.measure.checkpoints import write_numpy_checkpoint
from hgt_infer.cuda.slot_record import PROPOSED

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 256, "vocab_size": 400}
NUM_ROWS = 2
NUM_TOKENS = 8


def check_smoke(subject: Subject) -> Iterator[Result]:
    """Export a tiny model; run, capture, replay and sample a step of it on a GPU; then generate tokens."""
    folder = subject.folder / "smoke"
    checkpoint = write_numpy_checkpoint(folder / "checkpoint", SIZES)
    tiny = Subject(checkpoint, folder, subject.device, subject.scale, precision=subject.precision)
    size = f"{tiny.precision} model of {SIZES['n_layer']} layers"
    if tiny.is_cuda:
        yield from check_parts(tiny, size)
    with tiny.generator(num_slots=NUM_ROWS) as generator:
        ids = token_ids(generator.generate(["ab", "cdef"], fixed_length(NUM_TOKENS, seed=0)))
    is_good = [len(row) for row in ids] == [NUM_TOKENS] * 2
    figure = f"{sum(map(len, ids))} tokens"
    yield judged("smoke: generator", is_good, figure, f"{size}, 2 requests of {NUM_TOKENS}", token_ids=ids)


def check_parts(tiny: Subject, size: str) -> Iterator[Result]:
    """A step by its parts: what fails says by its place which one it is."""
    with open_parts(tiny, NUM_ROWS) as parts:
        with parts.device.at_work():
            parts.run_eagerly()
            parts.device.stream.synchronize()
        yield check_values("smoke: run", parts.read("logits").copy(), f"{size}, a step that is not captured")
        parts.capture()
        parts.run("model")
        logits = parts.read("logits").copy()
        yield check_values("smoke: replay", logits, "the same step, captured and replayed")
        for name, cluster_sizes in (("one block", (1,)), ("clusters", (1, 2, 4, 8))):
            parts.open_sampler(name, cluster_sizes=cluster_sizes, temperature=0.0)
            parts.run(name)
            chosen, likeliest = (PROPOSED - parts.read("token_ids")).tolist(), logits.argmax(axis=1).tolist()
            name, says = f"smoke: sampler, {name}", f"likeliest {likeliest}"
            yield judged(name, chosen == likeliest, f"chose {chosen}", says)


def check_values(name: str, logits: NDArray[np.floating], says: str) -> Result:
    """Logits are numbers, and not all of them zeros."""
    is_good = bool(np.isfinite(logits).all() and logits.any())
    return judged(name, is_good, "logits are numbers" if is_good else "logits are not numbers", says)
