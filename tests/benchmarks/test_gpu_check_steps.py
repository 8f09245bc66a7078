"""The steps of the check of a GPU, on the CPU and on a stand-in for a GPU, with a tiny checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fake_cuda import FakeCudaDevice
from transformers import GPT2LMHeadModel

from benchmarks.gpu_check import correctness, limits, peers, profiling, smoke, soak, timings, variants
from benchmarks.gpu_check.children import Child
from benchmarks.gpu_check.placement import Placement, placement_of
from benchmarks.gpu_check.replays import records, step_parts
from benchmarks.gpu_check.report import Report, Result, Skipped, Step
from benchmarks.gpu_check.steps import steps, verify_export
from benchmarks.gpu_check.subject import (
    TRIAL,
    Subject,
    fixed_length,
    token_ids,
    write_seeded_checkpoint,
)
from hgt_infer import Generator
from hgt_infer.cuda import device as cuda
from hgt_infer.cuda import slot_record
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.export.verify import TOLERANCES
from hgt_infer.runtime.device import CpuDevice
from hgt_infer.sampling.host import filtered_probs

WHOLE = Placement({"CUDAExecutionProvider": 474}, {}, 0)
MIXED = Placement(
    {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 3},
    {"CPUExecutionProvider": ["Concat (a/Concat_node_1)"], "CUDAExecutionProvider": ["Add (b)"]},
    num_copies=2,
)
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 256, "vocab_size": 400}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeded_checkpoint(tmp_path_factory.mktemp("gpu_check") / "checkpoint", SIZES)


@pytest.fixture(scope="module")
def subject(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(checkpoint, tmp_path_factory.mktemp("gpu_check"), "cpu", TRIAL)


@pytest.fixture
def fake(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """The subject on a stand-in for a GPU, which takes the fp32 graphs; all of its devices are one GPU."""
    opened: list[FakeCudaDevice] = []

    def open_fakes(name: str, *, num_threads: int = 0) -> list[Any]:
        if name == "cpu":
            return [CpuDevice()]
        assert name == "cuda"
        others = sum(block.nbytes for d in opened for block in d.cudart.device_memory.values())
        opened.append(FakeCudaDevice(total_bytes=2 << 30, pace=len(opened)))
        opened[-1].cudart.other_bytes = others
        return [opened[-1]]

    for module, name in ((correctness, "NUM_SLOTS"), (correctness, "CAPTURED_SLOTS"), (soak, "NUM_SLOTS")):
        monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(correctness, "DRAW_SLOTS", 16)
    monkeypatch.setattr("hgt_infer.opening.open_devices", open_fakes)
    monkeypatch.setattr("benchmarks.gpu_check.subject.open_devices", open_fakes)
    fake = Subject(subject.model, subject.folder, "cuda", TRIAL, precision="fp32")
    fake.artifact = fake.reference = subject.artifact
    return fake


def results_of(found: Any) -> list[Result]:
    return [found] if isinstance(found, Result) else list(found)


def assert_all_passed(found: Any) -> list[Result]:
    results = results_of(found)
    assert {result.status for result in results} == {"passed"}, results
    return results


def test_placement_of_a_real_session(subject: Subject) -> None:
    placement = placement_of(subject.artifact.model_path, "CPUExecutionProvider")
    assert list(placement.num_nodes) == ["CPUExecutionProvider"]
    assert (placement.num_copies, placement.error) == (0, "")


def test_nodes_elsewhere_fail_the_check(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for placement in (WHOLE, MIXED):

        def placed(path: Path, provider: str, device_id: int, found: Placement = placement) -> Placement:
            assert (path.name, provider, device_id) == ("model.onnx", "CUDAExecutionProvider", 0)
            return found

        monkeypatch.setattr(correctness, "placement_of", placed)
        results += results_of(correctness.check_placement(fake))
    assert [result.status for result in results] == ["passed", "failed"]
    assert results[1].figure == "3 nodes, 1 elsewhere, 2 Memcpy"
    assert results[1].says == "elsewhere: Concat (a/Concat_node_1)"


# What is checked


def test_seeded_checkpoint_is_transformers_own_layout(checkpoint: Path) -> None:
    model, loading = GPT2LMHeadModel.from_pretrained(checkpoint, output_loading_info=True)
    assert set(loading["missing_keys"]) <= {"lm_head.weight"}
    assert not loading["unexpected_keys"]
    deviation = model.transformer.h[0].mlp.c_proj.weight.std().item()
    assert deviation == pytest.approx(0.08 / 2, rel=0.05)
    before = (checkpoint / "config.json").stat().st_mtime_ns
    assert write_seeded_checkpoint(checkpoint, SIZES) == checkpoint
    assert (checkpoint / "config.json").stat().st_mtime_ns == before


def test_tweets_workload_is_as_long_as_asked_and_has_the_tweets_lengths(subject: Subject) -> None:
    workload = subject.tweets_workload(1_000)
    assert len(workload.prompts) == len(set(workload.prompts)) == 1_000
    assert np.mean(workload.lengths) == pytest.approx(34.8, abs=0.2)
    assert {len(ids) for ids in workload.prompt_token_ids} == {3, 4, 5, 6, 7, 8}


def test_records_are_those_of_sequences_that_sample_and_wait() -> None:
    rows = records(3, {"top_p": 0.95})
    assert rows["top_p"].tolist() == pytest.approx([0.95] * 3)
    assert (rows["holds"] == slot_record.WAITS).all()
    assert (rows["fed_tokens"] == -1).all()
    assert len(set(rows["sample_index"].tolist())) == 3


@pytest.mark.filterwarnings("default")  # transformers' own
def test_every_step_runs_on_a_cpu(
    subject: Subject, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path / "o.json", {})
    chosen = [step for step in steps(TRIAL) if step.name != "transformers"]
    assert report.run(chosen, subject), report.table()
    table = report.table()
    assert not report.has_failed, table
    skipped = {result.name for result in report.results if result.status == "skipped"}
    assert skipped == {
        *("captured = eager", "graphs", "out of memory", "compiled", "profile of replays", "variants")
    }
    assert len(report.results) > len(chosen)
    assert "first token" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")
def test_transformers_is_compared_on_a_cpu(subject: Subject) -> None:
    results = {result.name: result for result in results_of(peers.compare_peers(subject))}
    assert results["same as transformers"].status == "passed"
    assert results["same as transformers"].figure == "20 of 20 equal"
    assert {"transformers, 4, sorted", "tweets, ratio", "transformers, batch 1"} <= set(results)


def test_comparison_without_transformers_says_so(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = Report(None, {})
    report.run_step(Step("transformers", peers.compare_peers, is_optional=True), subject)
    assert [(result.status, result.says) for result in report.results] == [
        ("skipped", "torch is not installed")
    ]


def test_sorting_by_length_changes_the_order_alone(subject: Subject) -> None:
    workload = subject.tweets_workload(30)
    ordered = peers.by_length(workload)
    assert list(ordered.lengths) == sorted(workload.lengths)
    assert set(zip(ordered.prompts, ordered.prompt_token_ids, ordered.lengths, strict=True)) == set(
        zip(workload.prompts, workload.prompt_token_ids, workload.lengths, strict=True)
    )


# On a stand-in for a GPU


@pytest.mark.parametrize(
    "check",
    [
        correctness.check_logits,
        correctness.check_captured,
        correctness.check_alone,
        correctness.check_slot_reuse,
        correctness.check_seeds,
        correctness.check_distributions,
        soak.check_soak,
    ],
    ids=lambda check: check.__name__,
)
def test_check_passes_on_a_stand_in(check: Any, fake: Subject) -> None:
    assert_all_passed(check(fake))


def test_wrong_draws_fail(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device draws at temperature 1 what is checked against another one."""

    def sharpened(logits: Any, params: SequenceParams) -> Any:
        return filtered_probs(logits, replace(params, temperature=params.temperature / 3))

    monkeypatch.setattr(correctness, "filtered_probs", sharpened)
    results = results_of(correctness.check_distributions(fake))
    assert {result.status for result in results} == {"failed"}, results


def test_wrong_logits_fail(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    text_logits = correctness.text_logits

    def shifted(generator: Generator, *arguments: Any) -> Any:
        scores, logits = text_logits(generator, *arguments)
        return scores, [row + np.linspace(0, 1, len(row), dtype=np.float32) for row in logits]

    with fake.generator() as generator:
        expected = text_logits(generator, fake.texts[:3], fake)
    sides = iter([shifted, lambda *_: expected])
    monkeypatch.setattr(correctness, "text_logits", lambda *arguments: next(sides)(*arguments))
    steps_, prefills = results_of(correctness.check_logits(fake))
    assert (steps_.status, prefills.status) == ("failed", "passed")


def test_one_kind_of_settings_that_parts_fails(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    run_all, sides = correctness.run_all, iter(["captured", "eager"] * 2)

    def changed(made: Any, sequences: Any) -> Any:
        rows = run_all(made, sequences)
        if next(sides) == "captured":
            rows = [(*ids[:1], -1, *ids[2:]) if n % 4 == 3 else ids for n, ids in enumerate(rows)]
        return rows

    monkeypatch.setattr(correctness, "run_all", changed)
    result = correctness.check_captured(fake)
    assert (result.status, result.figure) == (
        "failed",
        "4 of 16 sequences part, at most 50.0% of the tokens",
    )
    assert "repetition_penalty" in result.says


def test_other_tokens_alone_fail(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = correctness.token_ids

    def changed(outputs: Any) -> Any:
        return [tuple(id_ + 1 for id_ in row) for row in ids(outputs)] if len(outputs) == 1 else ids(outputs)

    monkeypatch.setattr(correctness, "token_ids", changed)
    assert correctness.check_alone(fake).status == "failed"


@pytest.mark.parametrize(
    "timing",
    [
        correctness.measure_variance,
        timings.measure_bandwidth,
        timings.time_graphs,
        timings.time_decode,
        timings.time_steps_per_sync,
        timings.time_prompts,
        timings.time_tweets,
    ],
    ids=lambda timing: timing.__name__,
)
def test_timing_runs_on_a_stand_in(timing: Any, fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "COPY_BYTES", 1 << 16)
    monkeypatch.setattr(timings, "TWEETS_SLOTS", 8)
    monkeypatch.setattr("benchmarks.gpu_check.replays.NUM_REPLAYS", 2)
    monkeypatch.setattr("benchmarks.gpu_check.replays.WARMUP_S", 0)
    fake.notes.update(bandwidth=1e9, step_s={"8": 1e-4})
    results = results_of(timing(fake))
    assert {result.status for result in results} == {"measured"}, results
    assert all(result.figure for result in results)


def test_smoke_goes_through_every_part(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [result.name.removeprefix("smoke: ") for result in assert_all_passed(smoke.check_smoke(fake))]
    assert names == ["run", "replay", "sampler, one block", "sampler, clusters", "generator"]
    opened = smoke.StepParts.open_sampler

    def too_hot(self: Any, name: str, **settings: Any) -> None:
        opened(self, name, **settings | {"temperature": 99.0})

    monkeypatch.setattr(smoke.StepParts, "open_sampler", too_hot)
    failed = [result.name for result in results_of(smoke.check_smoke(fake)) if result.status == "failed"]
    assert failed == ["smoke: sampler, one block", "smoke: sampler, clusters"]


def test_export_that_differs_is_one_failed_result(
    subject: Subject, fake: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    [result] = assert_all_passed(verify_export(subject))
    assert 0 < result.values["max_difference"] < 1e-4
    monkeypatch.setitem(TOLERANCES, "fp32", (0.0, 0.0))
    [result] = results_of(verify_export(subject))
    assert result.status == "failed"
    assert result.figure == f"max {result.values['max_difference']:.3g}"
    assert result.says.endswith("allowed are 0 + 0 · |logit|")
    assert subject.artifact.model_path.is_file()


def test_export_that_fails_is_not_tried_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def failing(*arguments: Any, **_: Any) -> Any:
        calls.append(arguments)
        raise ValueError("no such operator")

    monkeypatch.setattr("benchmarks.gpu_check.subject.export_checkpoint", failing)
    path, statuses = tmp_path / "o.json", []
    report = Report(path, {})
    chosen = [step for step in steps(TRIAL) if step.name in ("export", "placement", "decode", "soak")]
    while not report.run(chosen, Subject(checkpoint, tmp_path, "cpu", TRIAL, notes=report.notes)):
        report = Report.load(path)
    statuses = [result.status for result in report.results]
    assert statuses == ["failed", "skipped", "skipped", "skipped"]
    assert report.results[-1].says == "the fp32 export failed: ValueError: no such operator"
    assert len(calls) == 1


def test_export_is_kept_for_the_process_that_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    first, second = (Subject(checkpoint, tmp_path, "cpu", TRIAL) for _ in range(2))
    assert first.artifact.path == second.artifact.path
    assert (first.is_kept, second.is_kept) == (False, True)
    other = write_seeded_checkpoint(tmp_path / "other", SIZES | {"n_layer": 1})
    assert Subject(other, tmp_path, "cpu", TRIAL).artifact.config.n_layer == 1
    assert len(list((tmp_path / "artifacts").iterdir())) == 1


def measured_sides(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[Any]]:
    """Let variants be measured in this process; the sides in turn, and the CUDA provider's settings."""
    names: list[str] = []
    settings: list[Any] = []
    monkeypatch.setattr("benchmarks.gpu_check.replays.NUM_REPLAYS", 2)
    monkeypatch.setattr("benchmarks.gpu_check.replays.WARMUP_S", 0)

    def take_turn(subject: Subject, variant: variants.Variant) -> Child:
        names.append(variant.name)
        with monkeypatch.context() as patch:
            patch.setattr(cuda, "PROVIDER_OPTIONS", dict(cuda.PROVIDER_OPTIONS))
            patch.setattr(cuda, "SESSION_ENTRIES", dict(cuda.SESSION_ENTRIES))
            lines = list(variants.measure(subject, variants.task_of(subject, variant)))
            settings.append((cuda.PROVIDER_OPTIONS, cuda.SESSION_ENTRIES))
        return Child([json.loads(json.dumps(line)) for line in lines])

    monkeypatch.setattr(variants, "take_turn", take_turn)
    monkeypatch.setattr(variants, "load_cudnn", lambda: None)
    return names, settings


def test_variants_run_in_turns_with_the_default(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    names, settings = measured_sides(fake, monkeypatch)
    monkeypatch.setattr(variants, "open_runtime", lambda: None)
    monkeypatch.setattr(variants, "count_nodes", lambda library, stream, run: run() or {"kernel": 9})
    results = {result.name: result for result in variants.compare_variants(fake)}
    sides = ["default", "cudnn", "cublas workspace", "gemm auto-tune"]
    assert names == sides * variants.NUM_TURNS
    assert {result.status for result in results.values()} == {"measured"}
    assert list(results) == [
        *("cudnn", "cudnn: prefill", "cublas workspace", "cublas workspace: nodes", "gemm auto-tune")
    ]
    assert results["cublas workspace: nodes"].figure == "9 kernel"
    assert len(results["cudnn"].values["variant"]["first"]) == 2 * TRIAL.num_prefills
    assert settings[1][0]["enable_cudnn"] == "1"
    assert settings[3][1] == {"ep.cuda.enable_gemm_auto_tune": "1"}
    assert cuda.PROVIDER_OPTIONS["enable_cudnn"] == "0"


def test_nodes_that_cannot_be_counted_are_skipped(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_sides(fake, monkeypatch)

    def missing() -> Any:
        raise OSError("libcudart.so.13: no such file")

    monkeypatch.setattr(variants, "open_runtime", missing)
    results = {result.name: result for result in variants.compare_variants(fake)}
    assert "cublas workspace: nodes" not in results
    skipped = results["cublas workspace: rest"]
    assert skipped.status == "skipped"
    assert skipped.says == "nodes were not counted: OSError: libcudart.so.13: no such file"


def test_variant_that_crashes_is_one_skipped_result(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def take_turn(subject: Subject, variant: variants.Variant) -> Child:
        turns.append(variant.name)
        if variant.name == "cudnn":
            return Child([], "exit -11: it said nothing")
        return Child([{"rows": 4, "seconds": [2e-4, 3e-4]}])

    monkeypatch.setattr(variants, "take_turn", take_turn)
    results = list(variants.compare_variants(fake))
    assert [(result.name, result.status) for result in results] == [
        ("cudnn: rest", "skipped"),
        ("cublas workspace", "measured"),
        ("gemm auto-tune", "measured"),
    ]
    assert turns.count("cudnn") == 1
    assert results[1].figure == "1.000 × at 4"


def test_child_without_a_gpu_says_so(subject: Subject) -> None:
    on_cuda = Subject(subject.model, subject.folder, "cuda", TRIAL, precision="fp32")
    on_cuda.artifact = subject.artifact
    child = variants.take_turn(on_cuda, variants.DEFAULT)
    assert child.lines == []
    assert "DeviceUnavailableError" in child.error


def test_variants_need_a_gpu(subject: Subject) -> None:
    with pytest.raises(Skipped, match="only on CUDA"):
        list(variants.compare_variants(subject))


def test_soak_asks_for_the_largest_runs_first(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with fake.generator(num_slots=8, max_length=256) as generator:
        generate = generator.generate
        monkeypatch.setattr(generator, "generate", lambda *args: asked.append(args) or generate(*args))
        soak.warm(generator)
    longest = max(len(" ".join("a" * number)) for number in range(1, soak.MAX_PROMPT_LENGTH // 2 + 1))
    prompts, params = asked[0]
    assert {len(prompt) for prompt in prompts} == {longest}
    assert len(set(prompts)) == soak.NUM_SLOTS
    assert params.prompt_logprobs is not None


def test_slots_that_do_not_fit_are_a_named_error(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPARE_BYTES", 1 << 20)
    [result] = assert_all_passed(limits.check_out_of_memory(fake))
    assert result.figure == "DeviceMemoryError"
    monkeypatch.setattr(limits, "SPARE_BYTES", 1 << 40)
    with pytest.raises(Skipped, match="smaller than what the libraries need"):
        limits.check_out_of_memory(fake)


def test_replayed_graphs_compute_what_the_runner_samples(fake: Subject) -> None:
    """Greedy of the replayed logits is the replayed token; a replay changes nothing that it reads."""
    with step_parts(fake, 2) as parts:
        parts.open_sampler("greedy", temperature=0.0)
        before = parts.read("seqlens_k").copy()
        parts.time("model", num_rounds=1, num_replays=2)
        parts.time("greedy", num_rounds=1, num_replays=2)
        logits, reports = parts.read("logits").copy(), parts.read("token_ids").copy()
        assert (slot_record.HELD - reports).tolist() == logits.argmax(axis=1).tolist()
        assert parts.read("seqlens_k").tolist() == before.tolist()
        parts.run_all(1)


def test_waits_for_events_are_counted_and_the_method_is_put_back(fake: Subject) -> None:
    from hgt_infer.cuda.device import CudaEvent

    wait = CudaEvent.wait
    with fake.generator(num_slots=2) as generator, timings.waiting_for_events() as waited:
        outputs = generator.generate("ab", fixed_length(4))
    assert [len(ids) for ids in token_ids(outputs)] == [4]
    assert waited
    assert min(waited) >= 0
    assert CudaEvent.wait is wait


def test_kernels_are_added_up_by_name() -> None:
    events = [
        {"cat": "kernel", "name": "void f<int>(int*)", "dur": 3},
        {"cat": "kernel", "name": "void f<int>(int*)", "dur": 4},
        {"cat": "Node", "name": "h.0/MatMul_kernel_time", "dur": 5, "args": {"op_name": "MatMul"}},
        {"cat": "Node", "name": "h.0/MatMul_fence_before", "dur": 9, "args": {"op_name": "MatMul"}},
        {"name": "metadata"},
    ]
    assert profiling.totals_by_name(events, "kernel") == {"void f<int>(int*)": (7, 2)}
    assert profiling.totals_by_name(events, "Node") == {"MatMul": (5, 1)}
