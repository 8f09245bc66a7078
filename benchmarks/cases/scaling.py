"""Rows a second of a Ray dataset by actors on one machine: `python -m benchmarks.cases.scaling ARTIFACT`."""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

from benchmarks.measure.comparison import seconds_of
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.workloads import offline
from hgt_infer import Generator, SamplingParams

NUM_TOKENS = 35  # a mean tweet's
BATCH_SIZE = 64


def measure_scaling(model: str, num_rows: int, num_actors: list[int], num_rounds: int) -> dict[str, Any]:
    """Time a generator of its own with all cores, then one actor a core, from the first row to the last.

    What a run pays once (actors that start and load) is not counted: a batch for each actor goes before.
    """
    import ray

    from hgt_infer.distributed import generate_dataset

    params = SamplingParams(max_tokens=NUM_TOKENS, min_tokens=NUM_TOKENS, top_k=50, top_p=0.95)
    prompts = list(offline(num_rows).prompts)
    seconds: dict[str, list[float]] = {}
    with Generator(model, device="cpu", num_slots=16) as generator:
        generator.generate(prompts[:64], params)
        seconds["a generator, no Ray"] = seconds_of(lambda: generator.generate(prompts, params), num_rounds)
    ray.init(
        num_cpus=max(num_actors) + 1, include_dashboard=False, logging_level="ERROR", log_to_driver=False
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        for actors in num_actors:
            rows = [{"id": i, "prompt": prompt} for i, prompt in enumerate(prompts)]
            warm = [{"id": -i, "prompt": "a"} for i in range(1, actors * BATCH_SIZE + 1)]
            times = seconds[f"{actors} actors"] = []
            for _ in range(num_rounds):
                # A block for each batch, which so comes out when it is done.
                num_blocks = (len(warm) + len(rows)) // BATCH_SIZE
                dataset = ray.data.from_items(warm + rows, override_num_blocks=num_blocks)
                done = generate_dataset(
                    dataset, model, params, concurrency=actors, batch_size=BATCH_SIZE,
                    settings={"num_slots": 16},
                )  # fmt: skip
                ends = [
                    (time.perf_counter(), len(batch["id"]))
                    for batch in done.iter_batches(batch_size=BATCH_SIZE, prefetch_batches=0)
                ]
                counted = sum(number for _, number in ends[actors:])
                times.append((ends[-1][0] - ends[actors - 1][0]) * num_rows / counted)
    finally:
        ray.shutdown()
    return {
        "environment": capture_environment(),
        "cores": os.cpu_count(),
        "num_rows": num_rows,
        "tokens_per_row": NUM_TOKENS,
        "seconds": seconds,
        "rows_per_s": {name: num_rows / sorted(values)[len(values) // 2] for name, values in seconds.items()},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parsed = parser.parse_args()
    print(json.dumps(measure_scaling(parsed.model, parsed.rows, parsed.actors, parsed.rounds), indent=2))
