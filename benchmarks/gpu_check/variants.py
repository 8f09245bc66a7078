"""Other settings of ONNX Runtime and cuBLAS beside ours, in turns, each in a process of its own.

`python -m benchmarks.gpu_check.variants TASK` measures one side, since cuBLAS reads its environment once in a
process; TASK is a `Task` as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.gpu_check.children import Child, end_with_parent, run_child
from benchmarks.gpu_check.graph_nodes import count_nodes, open_runtime
from benchmarks.gpu_check.replays import open_parts
from benchmarks.gpu_check.report import Result, Skipped, first_line, measured
from benchmarks.gpu_check.subject import Subject, fixed_length, subject_of
from benchmarks.measure.comparison import Spread, seconds_of
from hgt_infer.cuda import cudart
from hgt_infer.cuda import device as cuda
from hgt_infer.cuda.slot_record import MAX_FED_TOKENS

TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Variant:
    """Settings that differ from ours.

    options: of the CUDA provider. entries: of the session's configuration. environment: variables.
    prefills, nodes: whether prompts of many lengths are timed, whether a graph's nodes are counted.
    """

    name: str
    options: dict[str, str] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    prefills: bool = False
    nodes: bool = False


DEFAULT = Variant("default", prefills=True, nodes=True)
VARIANTS = (
    Variant("cudnn", options={"enable_cudnn": "1", "sdpa_kernel": "0"}, prefills=True),
    Variant("cublas workspace", environment={"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, nodes=True),
    Variant("gemm auto-tune", entries={"ep.cuda.enable_gemm_auto_tune": "1"}),
)


@dataclass(frozen=True)
class Task:
    """What a child does: an artifact's folder, a device, settings, and how much is measured."""

    artifact: str
    device: str
    options: dict[str, str]
    entries: dict[str, str]
    rows: tuple[int, ...]
    warmup_s: float
    num_rounds: int
    num_prefills: int
    nodes: bool


@dataclass
class Side:
    """What the turns of a variant found. error: why one of them ended early, the last one there was."""

    replays: dict[int, list[float]] = field(default_factory=dict)
    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    nodes: dict[str, int] = field(default_factory=dict)
    error: str = ""

    def take(self, child: Child) -> None:
        """Add what a turn found."""
        self.error = child.error or self.error
        for line in child.lines:
            if "rows" in line:
                self.replays.setdefault(line["rows"], []).extend(line["seconds"])
            elif "first_s" in line:
                self.first.append(line["first_s"])
                self.again.append(line["again_s"])
            elif "nodes" in line:
                self.nodes = line["nodes"]
            elif "error" in line:
                self.error = line["error"]


def compare_variants(subject: Subject) -> Iterator[Result]:
    """Every variant beside the default, which has turns of its own among them."""
    if not subject.is_cuda:
        raise Skipped("only on CUDA")
    sides = {variant.name: Side() for variant in (DEFAULT, *VARIANTS)}
    for _ in range(subject.scale.num_turns):
        for variant in (DEFAULT, *VARIANTS):
            side = sides[variant.name]
            if not side.error:  # it would crash or hang again
                side.take(take_turn(subject, variant))
    default = sides[DEFAULT.name]
    if not default.replays:
        raise Skipped(f"the default itself gave nothing: {default.error}")
    for variant in VARIANTS:
        yield from results_of(variant, default, sides[variant.name])


def take_turn(subject: Subject, variant: Variant) -> Child:
    """Measure one side in a process of its own."""
    task = json.dumps(asdict(task_of(subject, variant)))
    return run_child(__name__, [task], timeout_s=TIMEOUT_S, environment=variant.environment)


def task_of(subject: Subject, variant: Variant) -> Task:
    """What the child of a variant is given."""
    scale = subject.scale
    return Task(
        artifact=str(subject.artifact.path),
        device=subject.device,
        options=variant.options,
        entries=variant.entries,
        rows=scale.graph_rows,
        warmup_s=scale.warmup_s,
        num_rounds=scale.num_rounds,
        num_prefills=scale.num_prefills if variant.prefills else 0,
        nodes=variant.nodes,
    )


def results_of(variant: Variant, default: Side, side: Side) -> Iterator[Result]:
    """The rows of a variant: its replays, its prefills, its nodes; a skipped one for what did not come."""
    values = {"default": vars(default), "variant": vars(side)}
    both = [rows for rows in side.replays if rows in default.replays]
    if both:
        ours, theirs = (
            {rows: statistics.median(of.replays[rows]) for rows in both} for of in (side, default)
        )
        figure = ", ".join(f"{ours[rows] / theirs[rows]:.3f} × at {rows}" for rows in both)
        says = "; ".join(
            f"{rows}: {_spread(side.replays[rows], 1e6)} beside {_spread(default.replays[rows], 1e6)} µs"
            for rows in both
        )
        yield measured(variant.name, figure, f"time of the model's replay; {says}", **values)
    if side.first and default.first:
        figure = f"first {_spread(side.first, 1e3)}, again {_spread(side.again, 1e3)} ms"
        says = (
            f"beside {_spread(default.first, 1e3)} and {_spread(default.again, 1e3)} ms: prompts of "
            f"{len(side.first)} lengths, one at a time"
        )
        yield measured(f"{variant.name}: prefill", figure, says, **values)
    if variant.nodes and side.nodes and default.nodes:
        says = f"beside {_counts(default.nodes)}, in a captured run"
        yield measured(f"{variant.name}: nodes", _counts(side.nodes), says, **values)
    if error := side.error or (variant.nodes and default.error):
        yield Result(f"{variant.name}: rest", "skipped", says=error, values=values)


def _spread(seconds: Sequence[float], factor: float) -> str:
    return Spread.of([factor * s for s in seconds]).shown()


def _counts(nodes: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(nodes.items()))


def measure(subject: Subject, task: Task) -> Iterator[dict[str, Any]]:
    """What a child prints: the seconds of replays, of prefills, and the nodes of a graph."""
    cuda.PROVIDER_OPTIONS.update(task.options)
    cuda.SESSION_ENTRIES.update(task.entries)
    if task.options.get("enable_cudnn") == "1":
        load_cudnn()
    for num_rows in task.rows:
        with open_parts(subject, num_rows) as parts:
            parts.capture()
            seconds = parts.time("model", num_rounds=task.num_rounds, warmup_s=task.warmup_s).seconds
        yield {"rows": num_rows, "seconds": seconds}
    if task.num_prefills:
        yield from measure_prefills(subject, task.num_prefills)
    if task.nodes:
        try:
            yield {"nodes": nodes_of_run(subject, max(task.rows))}
        except Exception as error:
            yield {"error": f"nodes were not counted: {type(error).__name__}: {first_line(error)}"}


def load_cudnn() -> None:
    """Let ONNX Runtime find cuDNN, which we load for nothing else; OSError where it is not installed."""
    cudart.load_library("libcudnn.so.9", cudart.library_folders())


def measure_prefills(subject: Subject, num_lengths: int) -> Iterator[dict[str, Any]]:
    """Prompts of different lengths, none of which steps compute, each length for the first time and again."""
    limit = subject.artifact.config.n_positions - 8
    lengths = np.linspace(MAX_FED_TOKENS + 8, limit, num_lengths).astype(int).tolist()
    with subject.generator(num_slots=1) as generator:
        for length in lengths:
            prompts = (subject.prompts(1, length=length, seed=seed) for seed in range(2))
            first_s, again_s = seconds_of(lambda: generator.generate(next(prompts), fixed_length(1)), 2)  # noqa: B023
            yield {"length": length, "first_s": first_s, "again_s": again_s}


def nodes_of_run(subject: Subject, num_rows: int) -> dict[str, int]:
    """Capture an eager run of the model on the device's stream; its nodes by type."""
    with open_parts(subject, num_rows) as parts:
        library, device = open_runtime(), parts.device
        with device.capturing():
            for _ in range(2):  # allocations and plans are made before
                parts.run_eagerly()
            device.stream.synchronize()
            return count_nodes(library, device.stream.handle, parts.run_eagerly)


def main(argv: list[str]) -> int:
    """Print a line of JSON for each thing measured."""
    values = json.loads(argv[0])
    task = Task(**values | {"rows": tuple(values["rows"])})
    for line in measure(subject_of(task.artifact, task.device), task):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    end_with_parent()
    sys.exit(main(sys.argv[1:]))
