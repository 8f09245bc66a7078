"""The settings that each backend was tried with: `python -m benchmarks tune` times them all.

`benchmarks.peers.registry` has those that are the fastest over all cases together. Failures are recorded.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.cases.throughput import LONG_PROMPT, STATIC_BATCH_SIZE, timing_numbers
from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.paths import PEERS
from benchmarks.measure.quiet import take_quiet_turns, wait_for_quiet
from benchmarks.measure.workloads import MixedWorkload, Workload, long_prompt, random_prompts, tweets
from benchmarks.peers.worker import Remote, WorkerError, prepare

BATCH_SIZES = (1, 16, 64)
NUM_TWEETS = 128
MAX_SECONDS = 20.0
"""A trial that takes longer in the first run of a case takes no part in it and in those that follow."""


@dataclass(frozen=True)
class Trial:
    """Settings that replace those of the registry, and variables of the process's environment."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{key}={value}" for key, value in (*self.settings.items(), *self.variables.items())]
        return ", ".join(parts) or "as in the suite"


def _openvino(**properties: Any) -> Trial:
    return Trial({"properties": properties})


LIBIOMP = str(PEERS / "vllm" / "lib" / "libiomp5.so")
F32 = {"INFERENCE_PRECISION_HINT": "f32"}
SLEEPING = Trial(variables={"OMP_WAIT_POLICY": "passive"})
TRIED: dict[str, Sequence[Trial]] = {
    "hgt_infer_int8": [Trial(), Trial({"num_slots": 16}), Trial({"num_slots": 256})],
    "openvino_int8": [
        Trial(),
        Trial({"scheduler": {"cache_size": 2}}),
        _openvino(KV_CACHE_PRECISION="bf16"),
        _openvino(KV_CACHE_PRECISION="f32", **F32),
        _openvino(INFERENCE_NUM_THREADS=1),
        _openvino(DYNAMIC_QUANTIZATION_GROUP_SIZE=0),
        Trial({"scheduler": {"dynamic_split_fuse": False}}),
        Trial({"scheduler": {"max_num_batched_tokens": 256}}),
    ],
    "openvino_f32": [
        Trial(),
        _openvino(KV_CACHE_PRECISION="u8", **F32),
        Trial({"scheduler": {"dynamic_split_fuse": False}}),
    ],
    "openvino_bf16": [Trial(), _openvino(KV_CACHE_PRECISION="bf16")],
    "vllm_bfloat16": [
        Trial(),
        Trial({"enforce_eager": True}),
        Trial({"enforce_eager": True}, {"LD_PRELOAD": LIBIOMP}),
    ],
    "llama_server_q8_0": [
        Trial(),
        Trial({"num_slots": 32}),
        Trial({"num_slots": 64}),
        Trial({"num_slots": 32, "is_unified": True}),
        Trial({"num_slots": 64, "is_unified": True}),
    ],
    "ctranslate2_int8": [Trial(), SLEEPING],
    "transformers": [Trial(), Trial({"num_threads": 1}), SLEEPING],
    "transformers_compiled": [Trial(), Trial({"mode": "max-autotune-no-cudagraphs"})],
    "transformers_generate_batch": [
        Trial(),
        Trial({"block_size": 256}),
        Trial({"attention": "eager"}),
    ],
}


def tune(
    names: Sequence[str],
    folder: Path,
    *,
    num_rounds: int = 3,
    config: Any = None,
    wait: Callable[[], dict[str, Any]] = wait_for_quiet,
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Time every backend with all that is tried of it, in turns.

    Args:
        names: of TRIED.
        folder: for the checkpoint of random weights and what backends make of it.
        num_rounds: of each case, after one that is not counted.
        config: transformers' configuration of the model; None is GPT-2 124M.
        wait: waits until the machine is quiet, and returns what it found.
        keep: is given what there is of the result after each backend.

    Returns:
        The environment, and by backend and trial the tokens a second by case, or the error.
    """
    environment = capture_environment()
    checkpoint = write_model(folder, config)
    for name in names:
        prepare(name, checkpoint, folder / name)
    result: dict[str, Any] = {
        "environment": environment,
        "quiet": wait(),
        "num_rounds": num_rounds,
        "tried": {},
    }
    for name in names:
        result["tried"][name] = _tune(name, checkpoint, folder / name, num_rounds)
        keep(result)
    return result


def _tune(name: str, checkpoint: Path, folder: Path, num_rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        sides: dict[str, Remote] = {}

        def seconds(trial: str, workloads: Iterator[Workload | MixedWorkload]) -> float:
            """Time the next workload; infinite where it fails."""
            try:
                return sides[trial].seconds(next(workloads), batch_size=STATIC_BATCH_SIZE)
            except WorkerError as error:
                results[trial]["error"] = str(error)
                return math.inf

        for trial in TRIED[name]:
            print(f"{name}: {trial}", file=sys.stderr, flush=True)
            results[str(trial)] = {}
            try:
                side = Remote(name, checkpoint, folder, settings=trial.settings, variables=trial.variables)
                sides[str(trial)] = stack.enter_context(closing(side))
            except WorkerError as error:
                results[str(trial)]["error"] = str(error)
        for case, workloads in _cases(num_rounds).items():
            timers = {trial: partial(seconds, trial, iter(workloads)) for trial in sides}
            for trial_name, timer in [*timers.items()]:
                if (first_s := timer()) > MAX_SECONDS:
                    results[trial_name].setdefault("error", f"{case} took {first_s:.0f} s in its first run")
                    del sides[trial_name], timers[trial_name]
            durations, disturbed = take_quiet_turns(
                timers, num_rounds=num_rounds, pids=lambda trial: [sides[trial].pid]
            )
            for trial_name, durations_s in durations.items():
                if math.inf in durations_s:
                    del sides[trial_name]
                    continue
                rates = [_num_tokens(workloads[0]) / duration_s for duration_s in durations_s]
                num_kept = sum(timing["is_kept"] for timing in disturbed[trial_name])
                results[trial_name][case] = vars(Spread.of(rates)) | {"num_disturbed": num_kept}
    return results


def _cases(num_rounds: int) -> dict[str, Sequence[Workload | MixedWorkload]]:
    """What each timing computes, by case; see `throughput.Timings`."""
    numbers = timing_numbers(num_rounds)
    cases: dict[str, Sequence[Workload | MixedWorkload]] = {
        str(batch_size): [random_prompts(batch_size, number) for number in numbers]
        for batch_size in BATCH_SIZES
    }
    cases["tweets"] = [tweets().part(0, NUM_TWEETS)] * len(numbers)
    cases[f"{LONG_PROMPT} tokens"] = [long_prompt(LONG_PROMPT, number) for number in numbers]
    return cases


def _num_tokens(workload: Workload | MixedWorkload) -> int:
    """Those that are computed: a long prompt's own."""
    return max(workload.num_tokens, *map(len, workload.prompt_token_ids))
