"""Both sides of a comparison on a tiny checkpoint: the same tokens, and as many."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.fake_backend import MIXED, TINY, FakeBackend
from transformers import GPT2Config

from benchmarks.measure.checkpoints import write_checkpoint
from benchmarks.measure.paths import REPOSITORY
from benchmarks.measure.workloads import (
    MixedWorkload,
    TokenIds,
    Workload,
    random_prompts,
    tweets,
)
from benchmarks.peers.backends import (
    HgtInfer,
    StaticBatches,
    Transformers,
    check_greedy,
)
from benchmarks.peers.ctranslate2 import CTranslate2
from benchmarks.peers.environments import python_of
from hgt_infer.export import export_checkpoint


@pytest.fixture(scope="module")
def byte_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=128, n_positions=128, vocab_size=400, bos_token_id=399, eos_token_id=399
    )
    config.initializer_range = 0.2
    return write_checkpoint(tmp_path_factory.mktemp("benchmarks") / "checkpoint", config)


@pytest.fixture(scope="module")
def theirs(byte_checkpoint: Path) -> Transformers:
    return Transformers(byte_checkpoint, num_threads=1)


@pytest.fixture(scope="module")
def ours(byte_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HgtInfer]:
    artifact = export_checkpoint(byte_checkpoint, tmp_path_factory.mktemp("benchmarks") / "artifact")
    backend = HgtInfer(artifact.path)
    yield backend
    backend.close()


def test_existing_checkpoint_is_kept(byte_checkpoint: Path) -> None:
    before = (byte_checkpoint / "model.safetensors").stat().st_mtime_ns
    assert write_checkpoint(byte_checkpoint, GPT2Config()) == byte_checkpoint
    assert (byte_checkpoint / "model.safetensors").stat().st_mtime_ns == before


def test_static_batches_run_in_order_until_the_longest_row_ends_and_drop_the_surplus() -> None:
    runs = []

    def generate_padded(batch: MixedWorkload, *, greedy: bool) -> TokenIds:
        runs.append((batch.prompts, max(batch.lengths), greedy))
        return [(ids[0], *range(max(batch.lengths) - 1)) for ids in batch.prompt_token_ids]

    side = StaticBatches(generate_padded, 2)
    assert side.name == "transformers_2"
    assert side.generate(MIXED, greedy=True) == [(0,), (1, 0, 1, 2), (4, 0, 1)]
    assert runs == [(("a", "bcd"), 4, True), (("ef",), 3, True)]


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
    # The second is among the two largest; the first lies above them, which counts as 0.
    assert theirs.margins(prompt, (*greedy[:2], second_id), top_k=2) == pytest.approx([0, 0, 0], abs=1e-4)
    third_id = int(torch.topk(logits, 3).indices[2])
    third = float(torch.topk(logits, 3).values[2])
    [*_, margin] = theirs.margins(prompt, (*greedy[:2], third_id), top_k=2)
    assert margin == pytest.approx(second - third, abs=1e-4)


def test_gate_names_the_first_difference() -> None:
    class Different(FakeBackend):
        def generate(self, workload: Workload, *, greedy: bool = False) -> TokenIds:
            token_ids = super().generate(workload)
            return [*token_ids[:-1], (7, 7, 8, 7, 7)]

    with pytest.raises(ValueError, match="a and b differ in sample 3 at step 2"):
        check_greedy(FakeBackend("a", [0.0], 1, []), Different("b", [0.0], 1, []), TINY)


def test_rows_of_ctranslate2_end_one_by_one(
    byte_checkpoint: Path, theirs: Transformers, tmp_path: Path
) -> None:
    side = CTranslate2(byte_checkpoint, tmp_path / "model", compute_type="float32")
    mixed = tweets().head(20, max_tokens=12)
    expected = StaticBatches(theirs.generate_padded, 20).generate(mixed, greedy=True)
    assert side.generate_padded(mixed, greedy=True) == expected
    assert [*map(len, side.generate_padded(mixed))] == [*mixed.lengths]
    start = time.perf_counter()
    times = side.time_tokens(mixed)
    assert all(start < first <= end for first, end in times)
    assert [first == end for first, end in times] == [length == 1 for length in mixed.lengths]
    assert len({end for _, end in times}) > 1
    fixed = replace(random_prompts(3), num_new_tokens=8)
    assert side.generate(fixed, greedy=True) == theirs.generate(fixed, greedy=True)


VLLM_PYTHON = python_of("vllm")
VLLM_SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from benchmarks.measure.workloads import one_prompt, random_prompts, tweets
from benchmarks.peers.vllm import Vllm

vllm = Vllm(Path(sys.argv[1]), Path(sys.argv[2]), dtype="float32", num_slots=16, enforce_eager=True)
mixed = tweets().head(20, max_tokens=12)
seeds = [*range(20)]
results = {
    "fixed": vllm.generate(replace(random_prompts(3), num_new_tokens=8), greedy=True),
    "mixed": vllm.generate(mixed, greedy=True),
    "samples": vllm.generate(one_prompt(3, num_new_tokens=12)),
    "seeded": vllm.generate(mixed, seeds=seeds),
    "alone": [vllm.generate(mixed.part(i, i + 1), seeds=[i])[0] for i in range(4)],
    "steps": [],
}
vllm.add_request(7, (5, 6, 7), 3, mixed.sampling)
results["steps"].append(vllm.step())
vllm.add_request(8, (8, 9), 1, mixed.sampling)
while vllm.num_unfinished:
    results["steps"].append(vllm.step())
Path(sys.argv[3]).write_text(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(not VLLM_PYTHON.exists(), reason="build/peers/vllm is not there")
def test_vllm_chooses_the_same_greedy_tokens_and_serves_requests_by_steps(
    byte_checkpoint: Path, theirs: Transformers, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    command = [str(VLLM_PYTHON), "-c", VLLM_SCRIPT, str(byte_checkpoint), str(tmp_path / "cache"), str(path)]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(path.read_text())
    fixed = replace(random_prompts(3), num_new_tokens=8)
    assert results["fixed"] == [[*ids] for ids in theirs.generate(fixed, greedy=True)]
    mixed = tweets().head(20, max_tokens=12)
    expected = StaticBatches(theirs.generate_padded, 20).generate(mixed, greedy=True)
    assert results["mixed"] == [[*ids] for ids in expected]
    assert [*map(len, results["seeded"])] == [*mixed.lengths]
    assert results["seeded"][:4] == results["alone"]
    assert len({tuple(ids) for ids in results["samples"]}) == 3
    assert results["steps"] == [{"7": 1}, {"7": 2, "8": 1}, {"7": 3}]
