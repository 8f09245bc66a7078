"""What hgt_infer costs besides speed: time to import, time to the first token, memory. Fresh processes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.components.conftest import Record, recorded_clock
from benchmarks.measure.bounds import memory_budget_mb
from benchmarks.measure.fresh_processes import FIRST_TOKEN, first_token_s, in_fresh_processes
from hgt_infer.artifact.folder import read_artifact

CASE = "light"

IMPORT = """
import json, time
start = time.perf_counter()
import onnxruntime, tokenizers
middle = time.perf_counter()
import hgt_infer
print(json.dumps({"dependencies_s": middle - start, "hgt_infer_s": time.perf_counter() - middle}))
"""

MEMORY = """
import json, sys
from benchmarks.measure.memory import memory_bytes
from hgt_infer import Generator, SamplingParams
generator = Generator(sys.argv[1], device="cpu", num_slots=int(sys.argv[2]))
params = SamplingParams(max_tokens=64, min_tokens=64)
generator.generate([f"ab{number:02}" for number in range(int(sys.argv[2]))], params)
print(json.dumps({f"{name}_mb": number / 1e6 for name, number in memory_bytes().items()}))
"""

NUM_SLOTS, MAX_LENGTH, NUM_POSITIONS_USED = 16, 1024, 4 + 64


@pytest.mark.benchmark(timer=recorded_clock)
def test_import(
    num_rounds: int, benchmark: Any, replay: Callable[[Sequence[float]], None], record: Record
) -> None:
    rounds = in_fresh_processes(IMPORT, num_rounds=num_rounds)
    seconds = [round_["hgt_infer_s"] for round_ in rounds]
    replay(seconds)
    dependencies_s = statistics.median(round_["dependencies_s"] for round_ in rounds)
    benchmark.extra_info["dependencies_s"] = dependencies_s
    line = (
        f"import hgt_infer: {1e3 * statistics.median(seconds):.0f} ms "
        f"on top of {1e3 * dependencies_s:.0f} ms of onnxruntime and tokenizers"
    )
    record(CASE, line, {"name": "import", "rounds": rounds})


@pytest.mark.benchmark(timer=recorded_clock)
def test_first_token(
    artifact: Path,
    num_rounds: int,
    benchmark: Any,
    replay: Callable[[Sequence[float]], None],
    record: Record,
) -> None:
    """The files are in the page cache: the first process, which is not counted, read them."""
    rounds = in_fresh_processes(FIRST_TOKEN, str(artifact), "cpu", num_rounds=num_rounds)
    seconds = [first_token_s(round_) for round_ in rounds]
    replay(seconds)
    medians = {name: statistics.median(round_[name] for round_ in rounds) for name in rounds[0]}
    benchmark.extra_info.update(medians)
    parts = ", ".join(f"{name.removesuffix('_s')} {value:.2f} s" for name, value in medians.items())
    precision = read_artifact(artifact).precision
    line = f"GPT-2 124M in {precision} to the first token: {statistics.median(seconds):.2f} s ({parts})"
    record(CASE, line, {"name": "first_token", "precision": precision, "rounds": rounds})


def test_memory(artifact: Path, record: Record) -> None:
    [memory] = in_fresh_processes(MEMORY, str(artifact), str(NUM_SLOTS), num_rounds=1, num_warmups=0)
    weights_mb = sum(file.stat().st_size for file in artifact.glob("model.onnx*")) / 1e6
    allocated_mb, touched_mb = (
        memory_budget_mb(weights_mb, num_positions=NUM_SLOTS * length)
        for length in (MAX_LENGTH, NUM_POSITIONS_USED)
    )
    precision = read_artifact(artifact).precision
    line = (
        f"GPT-2 124M in {precision} after {NUM_SLOTS} × 64 tokens: {memory['resident_mb']:,.0f} MB resident "
        f"({memory['resident_file_mb']:,.0f} MB of it mapped files), peak {memory['peak_mb']:,.0f} MB; "
        f"budget {allocated_mb:,.0f} MB for {NUM_SLOTS} slots of {MAX_LENGTH} positions, "
        f"{touched_mb:,.0f} MB for the {NUM_SLOTS} × {NUM_POSITIONS_USED} used"
    )
    budgets = {"budget_allocated_mb": allocated_mb, "budget_touched_mb": touched_mb}
    record(CASE, line, {"name": "memory", "precision": precision, **memory, **budgets})
