"""Everything that is done, in its order: what is right first, then how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from benchmarks.environment import capture_environment
from benchmarks.gpu_check import correctness, limits, peers, profiling, soak, timings
from benchmarks.gpu_check.report import Result, Step, judged
from benchmarks.gpu_check.subject import Scale, Subject

SHOWN_LIBRARIES = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers")
OTHERS_CODE = ("transformers", "compiled", "profile of nodes", "profile of replays")


def steps(scale: Scale, *, with_profile: bool) -> list[Step]:
    """The steps, with the seconds that each takes at most on a large GPU, where it is quick and where not."""
    chosen: list[tuple[str, Callable[[Subject], Any], float, float]] = [
        ("environment", show_environment, 1, 1),
        ("export", export, 20, 20),
        ("placement", correctness.check_placement, 8, 8),
        ("logits", correctness.check_logits, 12, 25),
        ("captured = eager", correctness.check_captured, 10, 10),
        ("alone = batched", correctness.check_alone, 5, 10),
        ("slots reused", correctness.check_slot_reuse, 5, 5),
        ("seeds", correctness.check_seeds, 8, 8),
        ("batch_invariant=False", correctness.measure_variance, 10, 10),
        ("distributions", correctness.check_distributions, 20, 20),
        ("missing GPU", limits.check_missing_gpu, 1, 1),
        ("bandwidth", timings.measure_bandwidth, 2, 2),
        ("graphs", timings.time_graphs, 10, 20),
        ("decode", timings.time_decode, 12, 20),
        ("tweets", timings.time_tweets, 8, 15),
        ("transformers", peers.compare_peers, 25, 80),
        ("first token", timings.time_first_token, 12, 16),
        ("prompts", timings.time_prompts, 8, 15),
        ("steps_per_sync", timings.time_steps_per_sync, 12, 60),
        ("out of memory", limits.check_out_of_memory, 8, 8),
        ("soak", soak.check_soak, 10, 60),
        ("compiled", peers.time_compiled, 0, peers.COMPILED_TIMEOUT_S),
    ]
    if with_profile:
        chosen += [
            ("profile of nodes", profiling.profile_nodes, 10, 10),
            ("profile of replays", profiling.profile_replays, 15, 15),
        ]
    return [
        Step(name, run, full_s if scale.compiles else quick_s, is_optional=name in OTHERS_CODE)
        for name, run, quick_s, full_s in chosen
    ]


def show_environment(subject: Subject) -> Result:
    """What the figures below were measured on."""
    environment = capture_environment()
    gpus = environment.get("gpus") or []
    cuda = environment.get("cuda") or {}
    name = ", ".join(gpu.get("name", "GPU") for gpu in gpus) or cuda.get("gpu") or environment["cpu"]
    versions = environment["versions"]
    parts = [f"{library} {versions[library]}" for library in versions if library in SHOWN_LIBRARIES]
    if gpus:
        parts.insert(0, f"driver {gpus[0].get('driver_version', '?')}")
    if cuda:
        parts.insert(0, f"CUDA {cuda['driver']}")
    return judged(
        "environment",
        True,
        name,
        f"{', '.join(parts)}, Python {environment['python']}, commit {environment['commit']}",
    )


def export(subject: Subject) -> Result:
    """Both artifacts; each export compares its logits with NumPy's."""
    start_s = time.perf_counter()
    artifact, reference = subject.artifact, subject.reference
    seconds = time.perf_counter() - start_s
    config = artifact.config
    says = (
        f"{config.n_layer} layers, width {config.n_embd}, {config.vocab_size:,} tokens; {artifact.precision} "
        f"for {subject.device}, {reference.precision} to compare with; logits agree with NumPy's"
    )
    return judged("export", True, f"{seconds:.1f} s", says, seconds=seconds)
