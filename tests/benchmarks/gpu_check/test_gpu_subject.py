"""What is checked: its checkpoint, its exports, its texts and requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.check_results import SIZES, assert_all_passed, results_of
from support.paths import ROOT
from transformers import GPT2LMHeadModel

from benchmarks.gpu_check.report import Report
from benchmarks.gpu_check.scale import TRIAL
from benchmarks.gpu_check.steps import steps, verify_export
from benchmarks.gpu_check.subject import TEXTS, Subject
from benchmarks.measure.checkpoints import write_numpy_checkpoint
from hgt_infer.export.verify import TOLERANCES
from training.corpus.cleaning import clean
from training.tweets.reading import read_tweets


def test_seeded_checkpoint_is_transformers_own_layout(checkpoint: Path) -> None:
    model, loading = GPT2LMHeadModel.from_pretrained(checkpoint, output_loading_info=True)
    assert set(loading["missing_keys"]) <= {"lm_head.weight"}
    assert not loading["unexpected_keys"]
    deviation = model.transformer.h[0].mlp.c_proj.weight.std().item()
    assert deviation == pytest.approx(0.08 / 2, rel=0.05)
    before = (checkpoint / "config.json").stat().st_mtime_ns
    assert write_numpy_checkpoint(checkpoint, SIZES) == checkpoint
    assert (checkpoint / "config.json").stat().st_mtime_ns == before


def test_tweets_workload_is_as_long_as_asked_and_has_the_tweets_lengths(subject: Subject) -> None:
    workload = subject.tweets_workload(1_000)
    assert len(workload.prompts) == len(set(workload.prompts)) == 1_000
    assert np.mean(workload.lengths) == pytest.approx(34.8, abs=0.2)
    assert {len(ids) for ids in workload.prompt_token_ids} == {3, 4, 5, 6, 7, 8}


def test_texts_are_those_of_the_sample_archive() -> None:
    texts = TEXTS.read_text(encoding="utf-8").splitlines()
    kept = list(clean(read_tweets([ROOT / "training" / "sample" / "tweets.js"])).kept)
    assert len(texts) >= 64
    assert texts == kept[: len(texts)]
    assert not any("http" in text or text.startswith("RT @") for text in texts)


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

    monkeypatch.setattr("hgt_infer.export.export_checkpoint", failing)
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
    other = write_numpy_checkpoint(tmp_path / "other", SIZES | {"n_layer": 1})
    assert Subject(other, tmp_path, "cpu", TRIAL).artifact.config.n_layer == 1
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
