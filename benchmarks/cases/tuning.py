"""What each backend was tried with, so that it runs at its best: `python -m benchmarks tune` times it all.

The fastest settings over all batches are those of `benchmarks.peers.registry`. What does not run is told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.comparison import Spread, take_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.paths import PEERS
from benchmarks.measure.workloads import random_prompts
from benchmarks.peers.worker import Remote, WorkerError

BATCH_SIZES = (1, 16, 64)
MAX_SECONDS = 20.0
"""A batch that would take longer in its first run is left out, and larger ones too."""


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
        _openvino(KV_CACHE_PRECISION="bf16"),
        _openvino(KV_CACHE_PRECISION="f32", **F32),
        _openvino(INFERENCE_NUM_THREADS=1),
        _openvino(DYNAMIC_QUANTIZATION_GROUP_SIZE=0),
        Trial({"scheduler": {"dynamic_split_fuse": False}}),
        Trial({"scheduler": {"max_num_batched_tokens": 1024}}),
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
    keep: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Time every backend with all that is tried of it, in turns.

    Args:
        names: of TRIED.
        folder: for the checkpoint of random weights and what backends make of it.
        num_rounds: of each batch, after one that is not counted.
        config: transformers' configuration of the model; None is GPT-2 124M.
        keep: is given what there is of the result after each backend.

    Returns:
        The environment, and by backend and trial the tokens a second by batch, or the error.
    """
    environment = capture_environment()
    checkpoint = write_model(folder, config)
    result: dict[str, Any] = {"environment": environment, "num_rounds": num_rounds, "tried": {}}
    for name in names:
        result["tried"][name] = _tune(name, checkpoint, folder / name, num_rounds)
        keep(result)
    return result


def _tune(name: str, checkpoint: Path, folder: Path, num_rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        sides = {}
        for trial in TRIED[name]:
            print(f"{name}: {trial}", file=sys.stderr, flush=True)
            try:
                sides[str(trial)] = stack.enter_context(
                    closing(
                        Remote(name, checkpoint, folder, settings=trial.settings, variables=trial.variables)
                    )
                )
                results[str(trial)] = {}
            except WorkerError as error:
                results[str(trial)] = {"error": str(error)}
        for batch_size in BATCH_SIZES:
            workload = random_prompts(batch_size)
            for trial_name, side in [*sides.items()]:
                try:
                    if side.seconds(workload) > MAX_SECONDS:
                        del sides[trial_name]
                except WorkerError as error:
                    results[trial_name]["error"] = str(error)
                    del sides[trial_name]
            timers = {trial: partial(side.seconds, workload) for trial, side in sides.items()}
            for trial_name, seconds in take_turns(timers, num_rounds=num_rounds).items():
                rates = [workload.num_tokens / value for value in seconds]
                results[trial_name][str(batch_size)] = vars(Spread.of(rates))
    return results
