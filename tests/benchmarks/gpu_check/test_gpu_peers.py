"""transformers, and other settings, beside ours."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.check_results import results_of

from benchmarks.gpu_check import peers, variants
from benchmarks.gpu_check.children import Child
from benchmarks.gpu_check.report import Report, Skipped, Step
from benchmarks.gpu_check.scale import TRIAL
from benchmarks.gpu_check.subject import Subject
from hgt_infer.cuda import device as cuda


@pytest.mark.filterwarnings("default")
def test_transformers_is_compared_on_a_cpu(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = subject.tweets_workload(TRIAL.num_tweets).head(TRIAL.num_tweets, max_tokens=16)
    monkeypatch.setattr(subject, "tweets_workload", lambda count: requests)
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


def measured_sides(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[Any]]:
    """Let variants be measured in this process; the sides in turn, and the CUDA provider's settings."""
    names: list[str] = []
    settings: list[Any] = []
    monkeypatch.setattr("benchmarks.gpu_check.replays.NUM_REPLAYS", 2)
    fake.scale = replace(TRIAL, graph_rows=(2,), num_turns=2, num_prefills=1)

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
    assert names == sides * 2
    assert {result.status for result in results.values()} == {"measured"}
    assert list(results) == [
        *("cudnn", "cudnn: prefill", "cublas workspace", "cublas workspace: nodes", "gemm auto-tune")
    ]
    assert results["cublas workspace: nodes"].figure == "9 kernel"
    assert len(results["cudnn"].values["variant"]["first"]) == 2 * fake.scale.num_prefills
    assert settings[1][0]["enable_cudnn"] == "1"
    assert settings[3][1] == {"ep.cuda.enable_gemm_auto_tune": "1"}
    assert cuda.PROVIDER_OPTIONS["enable_cudnn"] == "0"


def test_nodes_that_cannot_be_counted_are_skipped(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_sides(fake, monkeypatch)
    fake.scale = replace(fake.scale, num_turns=1)

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
    fake.scale = replace(TRIAL, num_turns=2)
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
