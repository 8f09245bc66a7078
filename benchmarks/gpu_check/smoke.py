"""The first check, of a few seconds: a tiny model goes through every part of the path once."""

from __future__ import annotations

import time

import numpy as np

from benchmarks.gpu_check.replays import StepParts
from benchmarks.gpu_check.report import Result, judged
from benchmarks.gpu_check.subject import Subject, fixed_length, token_ids, write_seeded_checkpoint
from hgt_infer.slot_record import HELD

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 256, "vocab_size": 400}
NUM_ROWS = 2
NUM_TOKENS = 8


def check_smoke(subject: Subject) -> Result:
    """Export a tiny model; capture, replay and sample a step of it on a GPU; then generate tokens."""
    start_s = time.perf_counter()
    folder = subject.folder / "smoke"
    checkpoint = write_seeded_checkpoint(folder / "checkpoint", SIZES)
    tiny = Subject(checkpoint, folder, subject.device, subject.scale, precision=subject.precision)
    faults = replay_step(tiny) if tiny.is_cuda else []
    with tiny.generator(num_slots=NUM_ROWS) as generator:
        ids = token_ids(generator.generate(["ab", "cdef"], fixed_length(NUM_TOKENS, seed=0)))
    if [len(row) for row in ids] != [NUM_TOKENS] * 2:
        faults.append(f"{[len(row) for row in ids]} tokens came, not {NUM_TOKENS} each")
    says = f"{tiny.precision} model of {SIZES['n_layer']} layers: "
    says += "; ".join(faults) or ("captured, replayed and sampled" if tiny.is_cuda else "sampled")
    return judged("smoke", not faults, f"{time.perf_counter() - start_s:.1f} s", says, token_ids=ids)


def replay_step(tiny: Subject) -> list[str]:
    """What is wrong with a replayed step of the model and a greedy launch of the sampler behind it."""
    with tiny.open_device() as device:
        parts = StepParts(tiny, device, num_rows=NUM_ROWS)
        try:
            parts.open_model()
            parts.open_sampler("greedy", temperature=0.0)
            parts.capture()
            parts.run_all(1)
            logits, reports = parts.read("logits").copy(), parts.read("token_ids").copy()
        finally:
            parts.close()
    if not np.isfinite(logits).all() or not logits.any():
        return ["the replayed graph's logits are not numbers"]
    chosen = HELD - reports
    is_id = ((chosen >= 0) & (chosen < logits.shape[1])).all()
    if not is_id or (logits[np.arange(NUM_ROWS), chosen] != logits.max(axis=1)).any():
        return [f"the sampler reports {reports.tolist()}, the likeliest are {logits.argmax(axis=1).tolist()}"]
    return []
