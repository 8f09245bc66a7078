"""The checks pass on a stand-in for a GPU, and fail where something is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.check_results import assert_all_passed, results_of

from benchmarks.gpu_check import correctness, limits, smoke, soak
from benchmarks.gpu_check.replays import StepParts
from benchmarks.gpu_check.report import Skipped
from benchmarks.gpu_check.scale import TRIAL
from benchmarks.gpu_check.subject import Subject
from hgt_infer import Generator
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.sampling.host import filtered_probs


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
    fake.scale = replace(TRIAL, num_draws=400)
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

    def changed(*arguments: Any) -> Any:
        rows = run_all(*arguments)
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
    fake.scale = replace(TRIAL, num_requests=4)
    assert correctness.check_alone(fake).status == "failed"


def test_smoke_goes_through_every_part(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [result.name.removeprefix("smoke: ") for result in assert_all_passed(smoke.check_smoke(fake))]
    assert names == ["run", "replay", "sampler, one block", "sampler, clusters", "generator"]
    opened = StepParts.open_sampler

    def too_hot(self: Any, name: str, **settings: Any) -> None:
        opened(self, name, **settings | {"temperature": 99.0})

    monkeypatch.setattr(StepParts, "open_sampler", too_hot)
    failed = [result.name for result in results_of(smoke.check_smoke(fake)) if result.status == "failed"]
    assert failed == ["smoke: sampler, one block", "smoke: sampler, clusters"]


def test_soak_asks_for_the_largest_runs_first(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    with fake.generator(num_slots=8, max_length=256) as generator:
        generate = generator.generate
        monkeypatch.setattr(generator, "generate", lambda *args: asked.append(args) or generate(*args))
        soak.warm(generator)
    longest = max(len(" ".join("a" * number)) for number in range(1, soak.MAX_PROMPT_LENGTH // 2 + 1))
    prompts, params = asked[0]
    assert {len(prompt) for prompt in prompts} == {longest}
    assert len(set(prompts)) == 8
    assert params.prompt_logprobs is not None


def test_slots_that_do_not_fit_are_a_named_error(fake: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPARE_BYTES", 1 << 20)
    [result] = assert_all_passed(limits.check_out_of_memory(fake))
    assert result.figure == "DeviceMemoryError"
    monkeypatch.setattr(limits, "SPARE_BYTES", 1 << 40)
    with pytest.raises(Skipped, match="smaller than what the libraries need"):
        limits.check_out_of_memory(fake)
