"""Everything that is done, in its order: whether it works at all, how fast it is, whether it is right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_check import (
    correctness,
    limits,
    peers,
    profiling,
    smoke,
    soak,
    timings,
    tweets,
    variants,
)
from benchmarks.gpu_check.report import Result, Skipped, Step, judged
from benchmarks.gpu_check.scale import Scale
from benchmarks.gpu_check.subject import Subject
from benchmarks.measure.environment import capture_environment
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.verify import compare, numpy_logits
from hgt_infer.opening import verification_device

SHOWN_LIBRARIES = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers")
OTHERS_CODE = ("transformers", "compiled", "variants", "profile of nodes", "profile of replays")


def steps(scale: Scale) -> list[Step]:
    """The steps, with the seconds that each takes at most on a large GPU, where it is quick and where not.

    Behind the first one, which ends everything where it fails: the model, how fast it is, where the time
    goes, whether all is right, others beside it, other settings beside ours, and what takes long.
    """
    chosen: list[tuple[str, Callable[[Subject], Any], float, float]] = [
        ("smoke", smoke.check_smoke, 15, 15),
        ("environment", show_environment, 1, 1),
        ("export", export, 25, 25),
        ("export verified", verify_export, 10, 10),
        ("placement", correctness.check_placement, 8, 8),
        ("bandwidth", timings.measure_bandwidth, 2, 2),
        ("graphs", timings.time_graphs, 10, 15),
        ("decode", timings.time_decode, 8, 15),
        ("tweets", tweets.time_tweets, 8, 12),
        ("profile of replays", profiling.profile_replays, 15, 15),
        ("profile of nodes", profiling.profile_nodes, 8, 8),
        ("captured = eager", correctness.check_captured, 10, 10),
        ("logits", correctness.check_logits, 10, 20),
        ("alone = batched", correctness.check_alone, 5, 8),
        ("distributions", correctness.check_distributions, 15, 15),
        ("seeds", correctness.check_seeds, 8, 8),
        ("slots reused", correctness.check_slot_reuse, 5, 5),
        ("batch_invariant=False", correctness.measure_variance, 8, 8),
        ("missing GPU", limits.check_missing_gpu, 1, 1),
        ("transformers", peers.compare_peers, 20, 40),
        ("compiled", peers.time_compiled, 0, peers.COMPILED_TIMEOUT_S),
        ("steps_per_sync", tweets.time_steps_per_sync, 8, 12),
        ("variants", variants.compare_variants, 50, 80),
        ("prompts", timings.time_prompts, 8, 12),
        ("first token", timings.time_first_token, 12, 16),
        ("soak", soak.check_soak, 12, 20),
        ("out of memory", limits.check_out_of_memory, 8, 8),
    ]
    return [
        Step(
            name,
            run,
            full_s if scale.compiles else quick_s,
            is_optional=name in OTHERS_CODE,
            is_essential=name == "smoke",
        )
        for name, run, quick_s, full_s in chosen
    ]


def chosen_steps(scale: Scale, only: Sequence[str] | None) -> list[Step]:
    """All steps, or those with one of the texts in their names."""
    return [step for step in steps(scale) if only is None or any(text in step.name for text in only)]


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
    """Both artifacts; their logits are compared by the next step."""
    start_s = time.perf_counter()
    artifact, reference = subject.artifact, subject.reference
    seconds = time.perf_counter() - start_s
    config = artifact.config
    says = (
        f"{config.n_layer} layers, width {config.n_embd}, {config.vocab_size:,} tokens; {artifact.precision} "
        f"for {subject.device}, {reference.precision} to compare with"
    )
    if subject.is_kept:
        says += "; kept from before"
    return judged("export", True, f"{seconds:.1f} s", says, seconds=seconds)


def verify_export(subject: Subject) -> Iterator[Result]:
    """Each artifact's logits beside NumPy's, as an export compares them; where they differ, it is kept."""
    artifacts = [subject.artifact]
    if subject.reference is not subject.artifact:
        artifacts.append(subject.reference)
    for artifact in artifacts:
        with verification_device(artifact.precision) as device:
            found = compare(artifact, numpy_logits(read_checkpoint(subject.checkpoint)), device)
        if found is None:
            raise Skipped(f"{artifact.precision} runs on CUDA only")
        yield judged(
            f"export verified, {artifact.precision}",
            found.is_close,
            f"max {found.largest:.3g}",
            f"logits beside NumPy's; allowed are {found.allowed}",
            max_difference=found.largest,
        )
