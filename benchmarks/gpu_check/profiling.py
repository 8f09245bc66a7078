"""Which kernels a step's time goes to: ONNX Runtime's profiler over eager runs, torch's over replays.

`python -m benchmarks.gpu_check.profiling ARTIFACT DEVICE` prints the kernels of replays: torch's profiler
looks at a whole process, and may bring it down.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.gpu_check.children import end_with_parent, run_child
from benchmarks.gpu_check.replays import CONTEXT, step_parts
from benchmarks.gpu_check.report import Result, Skipped, measured
from benchmarks.gpu_check.subject import Subject, subject_of
from benchmarks.measure.checkpoints import SEED
from hgt_infer.cuda.device import session_settings

NUM_ROWS = 64
NUM_RUNS = 20
NUM_SHOWN = 12
TIMEOUT_S = 40


def profile_nodes(subject: Subject) -> list[Result]:
    """ONNX Runtime's own times by operator, of the model run eagerly: on CUDA, those of launching."""
    with TemporaryDirectory() as folder:
        options, provider_options = session_settings(subject.device_id)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        provider: Any = (subject.provider, provider_options) if subject.is_cuda else subject.provider
        session = ort.InferenceSession(
            str(subject.artifact.path / "model.onnx"), options, providers=[provider]
        )
        binding = bind_step(session, subject, NUM_ROWS if subject.is_cuda else 2)
        for _ in range(NUM_RUNS):
            session.run_with_iobinding(binding)
        events = json.loads(Path(session.end_profiling()).read_text())
        del session
    results = []
    for category, title in (("Kernel", "kernels of the eager graph"), ("Node", "operators, eager")):
        totals = totals_by_name(events, category)
        if totals:
            results.append(_costliest(title, totals, f"ONNX Runtime's profiler, {NUM_RUNS} runs"))
    if not results:
        raise Skipped("ONNX Runtime's profile has no node")
    return results


def bind_step(session: ort.InferenceSession, subject: Subject, num_rows: int) -> Any:
    """Bind one step of the model; past and present share their memory, as where it counts: else attention
    takes another kernel.
    """
    config = subject.artifact.config
    max_length = min(128, config.n_positions)
    position = np.full(num_rows, min(CONTEXT, max_length) - 1, np.int32)
    place = "cuda" if subject.is_cuda else "cpu", subject.device_id
    cache = np.zeros(
        (num_rows, config.n_head, max_length, config.n_embd // config.n_head), subject.artifact.float_type
    )
    inputs: dict[str, Any] = {
        "input_ids": np.random.default_rng(SEED).integers(0, 256, (num_rows, 1)).astype(np.int32),
        "position_ids": position[:, None],
        "seqlens_k": position,
    }
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, *place))
    binding.bind_cpu_input("total_sequence_length", np.array(max_length, np.int32))
    binding.bind_cpu_input("first_output", np.zeros(1, np.int64))
    for layer in range(config.n_layer):
        for kind in ("key", "value"):
            shared = ort.OrtValue.ortvalue_from_numpy(cache, *place)
            binding.bind_ortvalue_input(f"past_{kind}.{layer}", shared)
            binding.bind_ortvalue_output(f"present_{kind}.{layer}", shared)
    binding.bind_output("logits", *place)
    return binding


def totals_by_name(events: Iterable[dict[str, Any]], category: str) -> dict[str, tuple[float, int]]:
    """Microseconds and number of the events of a category: nodes by their operator, kernels by their name."""
    totals: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != category or (category == "Node" and not name.endswith("_kernel_time")):
            continue
        arguments = event.get("args") or {}
        totals[arguments.get("op_name", name) if category == "Node" else name].append(event["dur"])
    return {name: (sum(durations), len(durations)) for name, durations in totals.items()}


def profile_replays(subject: Subject) -> list[Result]:
    """The kernels of captured graphs while they are replayed, as torch's profiler sees them."""
    if not subject.is_cuda:
        raise Skipped("graphs are captured on CUDA")
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed")
    child = run_child(__name__, [str(subject.artifact.path), subject.device], timeout_s=TIMEOUT_S)
    totals = {line["kernel"]: (line["us"], line["count"]) for line in child.lines if "kernel" in line}
    if not totals:
        raise Skipped(child.error or "torch's profiler saw no kernel of the replays")
    says = f"{NUM_RUNS} replays of the model, and of the sampler with three settings, {NUM_ROWS} rows"
    return [_costliest("kernels, replayed", totals, says)]


def replay_totals(subject: Subject) -> dict[str, tuple[float, int]]:
    """Microseconds and number of every kernel that replays start."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]):
        torch.zeros(1, device=subject.device)  # the profiler's own start, before graphs are made
    with step_parts(subject, NUM_ROWS) as parts:
        parts.run_all(3)
        with TemporaryDirectory() as folder:
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                parts.run_all(NUM_RUNS)
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            events = json.loads(path.read_text())["traceEvents"]
    return totals_by_name(events, "kernel")


def _costliest(title: str, totals: dict[str, tuple[float, int]], says: str) -> Result:
    """One result: the costliest in the table, all of them in its values."""
    order = sorted(totals, key=lambda name: -totals[name][0])
    whole = sum(microseconds for microseconds, _ in totals.values())
    lines = [
        f"{totals[name][0] / whole:.1%} {short_name(name)} ({totals[name][1] / NUM_RUNS:g} a run)"
        for name in order[:NUM_SHOWN]
    ]
    values = {name: {"us": totals[name][0], "count": totals[name][1]} for name in order}
    figure = f"{whole / NUM_RUNS:,.0f} µs a run"
    return measured(title, figure, f"{'; '.join(lines)}: {says}", by_name=values)


def short_name(kernel: str) -> str:
    """A kernel's name without its template's arguments and its parameters.

    >>> short_name("void onnxruntime::cuda::Softmax<float, 4>(float*, int)")
    'onnxruntime::cuda::Softmax'
    """
    name = kernel.removeprefix("void ").partition("(")[0].partition("<")[0]
    return name if len(name) <= 48 else f"{name[:24]}…{name[-23:]}"


def main(argv: list[str]) -> int:
    """Print a line of JSON for each kernel."""
    for name, (microseconds, count) in replay_totals(subject_of(*argv)).items():
        print(json.dumps({"kernel": name, "us": microseconds, "count": count}))
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
