"""The pieces of the benchmarks, on a tiny checkpoint. No speed is asserted here."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.paths import ROOT
from transformers import GPT2Config

from benchmarks.cases import demo
from benchmarks.measure import workloads
from benchmarks.measure.comparison import Comparison, Spread, compare, time_in_turns
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.workloads import (
    TWEET_LENGTHS,
    MixedWorkload,
    Workload,
    byte_tokenizer,
    random_prompts,
    tweet_length,
    tweets,
    write_checkpoint,
)
from benchmarks.peers.backends import (
    HgtInfer,
    StaticBatches,
    TokenIds,
    Transformers,
    check_greedy,
)
from benchmarks.test_light import memory_budget_mb
from hgt_infer.export import export_checkpoint

TINY = Workload(prompts=("ab", "cd"), prompt_token_ids=((0, 1), (2, 3)), n=2, num_new_tokens=5)
MIXED = MixedWorkload(
    prompts=("a", "bcd", "ef"), prompt_token_ids=((0,), (1, 2, 3), (4, 5)), lengths=(1, 4, 3)
)


class FakeBackend:
    """Takes a given time for each call, on a clock that several share."""

    def __init__(self, name: str, clock: list[float], step: float, calls: list[str]) -> None:
        self.name, self.clock, self.step, self.calls = name, clock, step, calls

    def generate(self, workload: Workload | MixedWorkload, *, greedy: bool = False) -> TokenIds:
        self.clock[0] += self.step
        self.calls.append(self.name)
        return [(7,) * length for length in workload.lengths for _ in range(workload.n)]


@pytest.fixture(scope="module")
def byte_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=128, n_positions=128, vocab_size=400, bos_token_id=399, eos_token_id=399
    )
    config.initializer_range = 0.2
    return write_checkpoint(tmp_path_factory.mktemp("benchmarks") / "checkpoint", config)


def test_prompts_are_seeded_different_and_of_four_tokens() -> None:
    workload = random_prompts(16)
    assert workload == random_prompts(16)
    assert len(set(workload.prompts)) == 16
    assert workload.prompts[:5] == random_prompts(5).prompts
    tokenizer = byte_tokenizer(400)
    assert [tuple(tokenizer.encode(prompt).ids) for prompt in workload.prompts] == list(
        workload.prompt_token_ids
    )
    assert {len(ids) for ids in workload.prompt_token_ids} == {4}


def test_byte_tokenizer_has_a_text_for_every_id() -> None:
    tokenizer = byte_tokenizer(400)
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id("<|endoftext|>") == 399
    assert tokenizer.decode([300, 301]) == " w300 w301"


def test_existing_checkpoint_is_kept(byte_checkpoint: Path) -> None:
    before = (byte_checkpoint / "model.safetensors").stat().st_mtime_ns
    assert write_checkpoint(byte_checkpoint, GPT2Config()) == byte_checkpoint
    assert (byte_checkpoint / "model.safetensors").stat().st_mtime_ns == before


def test_tweets_workload_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tweets().sha256 == "8c6d3382a22d1825e310f4ce52eb19e4a20366f8ffae00a2d87c4c0c3d31f8a9"
    assert replace(tweets(), top_k=49).sha256 != tweets().sha256
    monkeypatch.setattr(workloads, "SEED", 1)
    with pytest.raises(ValueError, match="the tweets workload has SHA-256"):
        tweets()


def test_tweets_are_as_long_as_real_ones() -> None:
    lengths = sorted(tweets().lengths)
    assert statistics.mean(lengths) == pytest.approx(34.8, abs=0.05)
    for quantile, length in TWEET_LENGTHS[:-1]:
        assert bisect_left(lengths, length) / 256 == pytest.approx(quantile, abs=1 / 256)
    assert lengths[-1] < 110


def test_tweets_have_different_prompts_of_three_to_eight_tokens() -> None:
    workload = tweets()
    assert len(set(workload.prompts)) == len(workload.lengths) == 256
    assert {len(ids) for ids in workload.prompt_token_ids} == {3, 4, 5, 6, 7, 8}
    tokenizer = byte_tokenizer(400)
    assert [tuple(tokenizer.encode(prompt).ids) for prompt in workload.prompts] == list(
        workload.prompt_token_ids
    )


def test_lengths_are_linear_between_the_quantiles() -> None:
    quantiles = (0, 0.025, 0.05, 0.15, 0.25, 0.625, 0.995, 0.9999)
    assert [tweet_length(quantile) for quantile in quantiles] == [4, 7, 11, 16, 22, 40, 92, 109]
    with pytest.raises(ValueError, match=r"\[0, 1\); got 1"):
        tweet_length(1)


def test_static_batches_run_in_order_until_the_longest_row_ends_and_drop_the_surplus() -> None:
    runs = []

    def generate_padded(batch: MixedWorkload, *, greedy: bool) -> TokenIds:
        runs.append((batch.prompts, max(batch.lengths), greedy))
        return [(ids[0], *range(max(batch.lengths) - 1)) for ids in batch.prompt_token_ids]

    side = StaticBatches(generate_padded, 2)
    assert side.name == "transformers_2"
    assert side.generate(MIXED, greedy=True) == [(0,), (1, 0, 1, 2), (4, 0, 1)]
    assert runs == [(("a", "bcd"), 4, True), (("ef",), 3, True)]


def test_useful_share_counts_the_tokens_that_static_batches_drop() -> None:
    assert MIXED.num_tokens == 1 + 4 + 3
    assert MIXED.useful_share(1) == 1.0
    assert MIXED.useful_share(2) == 8 / (2 * 4 + 1 * 3)
    assert MIXED.useful_share(64) == 8 / (3 * 4)


def test_head_is_a_shorter_call_of_the_first_requests() -> None:
    assert MIXED.head(2, max_tokens=3) == replace(
        MIXED, prompts=("a", "bcd"), prompt_token_ids=((0,), (1, 2, 3)), lengths=(1, 3)
    )


@pytest.fixture(scope="module")
def theirs(byte_checkpoint: Path) -> Transformers:
    return Transformers(byte_checkpoint, num_threads=1)


@pytest.fixture(scope="module")
def ours(byte_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HgtInfer]:
    artifact = export_checkpoint(
        byte_checkpoint, tmp_path_factory.mktemp("benchmarks") / "artifact", references=["numpy"]
    )
    backend = HgtInfer(artifact.path)
    yield backend
    backend.close()


def test_both_sides_choose_the_same_greedy_tokens_and_sample_as_many(
    ours: HgtInfer, theirs: Transformers
) -> None:
    workload = replace(random_prompts(3), num_new_tokens=8)
    check_greedy(ours, theirs, workload)
    for side in (ours, theirs):
        token_ids = side.generate(workload)
        assert [len(ids) for ids in token_ids] == [8] * 3
        assert 399 not in {id_ for ids in token_ids for id_ in ids[:-1]}


def test_both_sides_choose_the_same_greedy_tokens_of_tweets_and_sample_as_many(
    ours: HgtInfer, theirs: Transformers
) -> None:
    workload = tweets().head(20, max_tokens=12)
    batches = StaticBatches(theirs.generate_padded, 8)
    assert ours.generate(workload, greedy=True) == batches.generate(workload, greedy=True)
    for side in (ours, batches):
        assert [len(ids) for ids in side.generate(workload)] == list(workload.lengths)
    assert 0 < ours.generator.stats().occupancy_while_waiting <= 1


def test_padding_changes_no_token_of_transformers(theirs: Transformers) -> None:
    workload = tweets().head(10, max_tokens=12)
    padded = StaticBatches(theirs.generate_padded, 10).generate(workload, greedy=True)
    assert padded == StaticBatches(theirs.generate_padded, 1).generate(workload, greedy=True)
    assert len(set(map(len, workload.prompt_token_ids))) > 1


def test_margin_is_the_distance_to_the_largest_logit_but_end_of_texts(theirs: Transformers) -> None:
    prompt = (1, 2, 3)
    [greedy] = theirs.generate_padded(
        MixedWorkload(prompts=("bcd",), prompt_token_ids=(prompt,), lengths=(6,)), greedy=True
    )
    assert theirs.margins(prompt, greedy) == pytest.approx([0] * 6, abs=1e-4)
    with torch.inference_mode():
        logits = theirs.model(torch.tensor([[*prompt, *greedy[:2]]])).logits[0, -1, :-1]
    largest, second = torch.topk(logits, 2).values.tolist()
    second_id = int(torch.topk(logits, 2).indices[1])
    margins = theirs.margins(prompt, (*greedy[:2], second_id))
    assert margins == pytest.approx([0, 0, largest - second], abs=1e-4)
    assert largest - second > 1e-2


def test_gate_names_the_first_difference() -> None:
    class Different(FakeBackend):
        def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
            token_ids = super().generate(workload)
            return [*token_ids[:-1], (7, 7, 8, 7, 7)]

    with pytest.raises(ValueError, match="a and b differ in sample 3 at step 2"):
        check_greedy(FakeBackend("a", [0.0], 1, []), Different("b", [0.0], 1, []), TINY)


def test_rounds_take_turns_after_the_warm_ups() -> None:
    now, calls = [0.0], []
    ours, theirs = FakeBackend("ours", now, 2.0, calls), FakeBackend("theirs", now, 3.0, calls)
    comparison = compare(ours, theirs, TINY, num_rounds=2, num_warmups=3, clock=lambda: now[0])
    assert calls == ["ours", "theirs"] * 3 + ["ours", "theirs", "theirs", "ours"]
    assert comparison.seconds == {"ours": [2.0, 2.0], "theirs": [3.0, 3.0]}


def test_more_than_two_sides_take_turns() -> None:
    now, calls = [0.0], []
    sides = [FakeBackend(name, now, step, calls) for name, step in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    seconds = time_in_turns(sides, MIXED, num_rounds=2, clock=lambda: now[0])
    assert calls == ["a", "b", "c", "c", "b", "a"]
    assert seconds == {"a": [1.0, 1.0], "b": [2.0, 2.0], "c": [3.0, 3.0]}


def test_missing_tokens_stop_the_rounds() -> None:
    side = StaticBatches(lambda batch, greedy: [(7,) for _ in batch.lengths], 2)
    with pytest.raises(ValueError, match="transformers_2 did not generate 8 tokens"):
        time_in_turns([side], MIXED, num_rounds=1)


def test_ratio_is_the_median_of_paired_rounds() -> None:
    comparison = Comparison(TINY, {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 8.0, 12.0]})
    assert comparison.ratio == Spread(median=3.0, low=2.0, high=4.0, first_quartile=2.5, third_quartile=3.5)
    assert comparison.tokens_per_s("ours") == 2 * 2 * 5 / 2.0
    assert comparison.ms_per_step("ours") == 400.0
    assert comparison.summary() == (
        "batch 4: ours 10.0 tok/s (400.00 ms/step), theirs 2.5 tok/s (1600.00 ms/step), "
        "ratio 3.00× (2.00–4.00, IQR 2.50–3.50, 3 rounds)"
    )
    assert json.loads(json.dumps(comparison.record()))["seconds"]["theirs"] == [2.0, 8.0, 12.0]


def test_spread_of_one_value() -> None:
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)


def test_memory_budget() -> None:
    assert memory_budget_mb(498, num_positions=16 * 1024) == pytest.approx(
        1.25 * (498 + 1207.96) + 150, abs=0.01
    )


def test_environment_is_json_with_machine_and_versions() -> None:
    environment = json.loads(json.dumps(capture_environment()))
    assert environment["usable_cpus"] >= 1
    assert {"numpy", "tokenizers", "torch", "transformers"} <= set(environment["versions"])
    assert environment.keys() >= {"cpu", "cpu_flags", "memory_gb", "load_average_1min", "python", "commit"}


def test_tweets_are_cut_at_the_first_line_break_and_wrapped() -> None:
    texts = [" My dream is soup.\nThe goose: honk.", "My dream is to " + "sail " * 20]
    lines = demo.format_tweets(texts, 60).splitlines()
    assert lines[0] == "  1  My dream is soup."
    assert lines[1].startswith("  2  My dream is to sail")
    assert lines[2].startswith("     sail")
    assert max(map(len, lines)) <= 60


def test_demo_table_fits_a_terminal() -> None:
    comparison = Comparison(TINY, {"hgt_infer": [1e-3] * 3, "transformers": [9e-3, 8e-3, 7e-3]})
    lines = demo.format_comparison(comparison, num_threads=16).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[:2] for line in lines[2:]] == [
        ["hgt_infer", "20,000"],
        ["transformers", "2,500"],
        ["ratio", "8.0"],
    ]
    assert lines[-1].endswith("(7.0 to 9.0 in 3 rounds)")


def test_demo_exports_samples_and_compares_without_noise(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.symlink_to(checkpoint)
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.cases.demo", str(folder), "--rounds", "2", "--tokens", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.stderr == ""
    assert process.returncode == 0
    lines = process.stdout.splitlines()
    assert "of transformers'" in process.stdout
    assert [line.split()[0] for line in lines if line.lstrip()[:1].isdigit()][:5] == list("12345")
    assert lines[-1].lstrip().startswith("ratio")
    assert (tmp_path / "checkpoint-artifact" / "model.onnx").is_file()


def test_demo_of_no_checkpoint_is_one_line_of_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "be_quiet", lambda: None)  # it is for the whole process
        assert demo.main([str(tmp_path / "nothing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
