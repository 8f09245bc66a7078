"""The CUDA sampler, run on the host: what it draws, how a row goes on, and how many threads do not matter."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.kernel_rows import Rows
from support.transformers_filters import FILTERS

from hgt_infer.cuda.cudart import COMPUTE_CAPABILITY_MAJOR, MAX_SHARED_BYTES_OPTIN
from hgt_infer.cuda.sampler import (
    BLOCK_SIZE,
    SOURCE,
    Sampler,
    sampler_defines,
    shared_bytes,
)
from hgt_infer.cuda.slot_record import HOST_CONTROLLED, IDLE, NOT_FINITE, PROMPT_TOKEN, PROPOSED
from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ModelFormatError
from hgt_infer.sampling.host import filtered_probs, process_logits
from hgt_infer.sampling.random_numbers import UNIFORMS_PER_STEP
from hgt_infer.sampling.settings import add_token, adjustment

VOCAB_SIZE = 320
EOS = 319


def some_logits(seed: int = 0, size: int = VOCAB_SIZE, *, has_ties: bool = False) -> NDArray[np.float32]:
    logits = (np.random.default_rng(seed).normal(size=size) * 2).astype(np.float32)
    return np.round(logits * 2) / 2 if has_ties else logits


SHAPES = [
    (2, 1, True, np.float16),
    (16, 1, False, np.float16),
    (64, 1, True, np.float32),
    (1, 2, True, np.float32),
    (4, 4, False, np.float32),
    (64, 2, True, np.float16),
    (1, 8, True, np.float16),
]
"""Threads of a block, blocks of a row, whether levels are kept, and of which logits; the standard is one of
each, kept. How logits are read does not depend on who reads them."""


def rows_of_all_settings(vocab_size: int, dtype: Any = np.float32) -> Rows:
    """A row for each kind of settings, with and without ties and adjustments, and greedy ones."""
    filters_of_rows: list[dict[str, Any]] = [*FILTERS[::2], {"temperature": 3.0, "top_k": 300}]
    adjusted = ({**filters, "is_adjusted": 1} for filters in filters_of_rows)
    settings_of_rows = [*filters_of_rows, *adjusted, {"temperature": 0}]
    logits = [
        some_logits(seed, vocab_size, has_ties=has_ties)
        for has_ties in (False, True)
        for seed in range(len(settings_of_rows))
    ]
    rows = Rows(np.stack(logits), dtype, seed=5)
    for row, filters in enumerate(2 * settings_of_rows):
        for name, value in filters.items():
            rows.records[name][row] = value
    rows.records["repetition_penalty"], rows.records["first_penalty"] = 1.3, 0.5
    rows.records["min_length"][::3] = 2
    rows.records["eos_token_ids"][:, 0] = vocab_size - 1
    return rows


STATE = ("input_ids", "positions", "logit_bias", "repetition_penalty", "token_counts")


@pytest.mark.parametrize(("block_size", "cluster_size", "keeps_levels", "dtype"), SHAPES)
def test_threads_blocks_and_kept_levels_change_nothing(
    block_size: int, cluster_size: int, keeps_levels: bool, dtype: Any
) -> None:
    """A vocabulary of 1,101: a row begins at any of the 8 places of a vector, the last chunk is not full.

    Rows have a first token by then, which adjusts the logits.
    """
    one, many = rows_of_all_settings(1_101, dtype), rows_of_all_settings(1_101, dtype)
    for rows in (one, many):
        rows.step()
    assert (one.step() == many.step(block_size, cluster_size, keeps_levels=keeps_levels)).all()
    for name in STATE:
        assert (getattr(one, name) == getattr(many, name)).all()


def test_half_precision_logits_are_read_as_what_they_are() -> None:
    half, single = (rows_of_all_settings(1_101, dtype) for dtype in (np.float16, np.float32))
    half.logits[0, :4] = [6e-8, -6e-8, 0, -0.0]  # subnormal
    single.logits[...] = half.logits
    for _ in range(3):
        assert (half.step() == single.step()).all()


@pytest.mark.parametrize("cluster_size", [1, 8])
def test_a_vocabulary_of_more_than_16_bits_is_drawn_from_in_the_order_of_ids(cluster_size: int) -> None:
    """Equal weights: the token is the random word's share of those that stay, the lowest ids."""
    vocab_size, share = 70_001, 0.97
    rows = Rows(np.zeros((2, vocab_size)), seed=8, top_p=[1.0, share])
    words = [int(np.random.Philox(key=np.array([8, i], np.uint64)).random_raw()) for i in range(2)]
    num_left = int(np.ceil(vocab_size * np.float64(np.float32(share))))
    expected = [words[0] * vocab_size >> 64, words[1] * num_left >> 64]
    assert rows.step(cluster_size=cluster_size).tolist() == expected


@pytest.mark.parametrize("keeps_levels", [True, False])
@pytest.mark.parametrize("cluster_size", [1, 2])
def test_top_k_tells_logits_apart_that_share_a_level(cluster_size: int, keeps_levels: bool) -> None:
    logits = np.full((3, VOCAB_SIZE), -60, np.float32)
    logits[0, [3, 300]] = np.nextafter(np.float32(0.05), np.float32(0)), 0.05
    logits[1, [3, 4, 300]] = 1e-7, 2e-7, 6
    logits[2] = some_logits() * 3 - 90
    allowed = [{300}, {4, 300}, set(np.argsort(logits[2])[-5:].tolist())]
    rows = Rows(
        np.repeat(logits, 100, axis=0),
        temperature=np.repeat(np.array([1, 4, 1e8]), 100),
        top_k=np.repeat([1, 2, 5], 100),
    )
    drawn = rows.step(cluster_size=cluster_size, keeps_levels=keeps_levels).reshape(3, 100)
    assert [set(row.tolist()) for row in drawn] == allowed


def test_zeros_of_both_signs_are_equal() -> None:
    logits = np.full(VOCAB_SIZE, -1.0)
    logits[[9, 30]] = -0.0, 0.0
    assert Rows(logits, temperature=0).step().tolist() == [9]


def test_greedy_takes_the_first_of_the_largest_logits() -> None:
    logits = some_logits(has_ties=True)
    logits[[40, 7, 200]] = 9
    assert Rows(logits, temperature=0).step().tolist() == [7]


def test_random_numbers_are_those_of_the_seed_the_sample_and_the_step() -> None:
    """Uniform over the vocabulary: the token is the random word's own share of it."""
    for seed, sample_index, step in [(0, 0, 0), (1, 2, 3), (2**63 + 5, 2**40, 9), (2**64 - 1, 0, 200)]:
        rows = Rows(np.zeros(VOCAB_SIZE), seed=np.uint64(seed), sample_index=sample_index, prompt_length=4)
        rows.positions[:] = 3 + step
        key = np.array([seed, sample_index], np.uint64)
        word = int(np.random.Philox(key=key).random_raw(UNIFORMS_PER_STEP * step + 1)[-1])
        assert rows.step().tolist() == [word * VOCAB_SIZE >> 64]


def test_the_real_vocabulary_with_the_real_number_of_threads_is_drawn_from_exactly() -> None:
    logits = some_logits(1, 50_257)
    filters: dict[str, Any] = {"top_p": 0.95, "temperature": 0.9}
    probs = filtered_probs(logits, SequenceParams(max_tokens=1, seed=0, **filters))
    drawn = Rows(np.tile(logits, (300, 1)), seed=9, **filters).step()
    assert (probs[drawn] > 0).all()
    # The mean log-probability of draws is the distribution's own.
    information = -np.log(probs[probs > 0])
    mean = (probs[probs > 0] * information).sum()
    spread = np.sqrt((probs[probs > 0] * (information - mean) ** 2).sum() / len(drawn))
    assert abs(-np.log(probs[drawn]).mean() - mean) < 4 * spread


def test_a_fed_prompt_goes_in_token_by_token_and_then_the_row_samples() -> None:
    rows = Rows(some_logits(), prompt_length=4, seed=1)
    rows.records["fed_tokens"][0, :4] = [11, 12, 13, 14]
    rows.input_ids[:] = 11
    reports = []
    for position in range(5):
        assert rows.positions.tolist() == [position]
        reports += rows.step().tolist()
        if position < 3:
            assert rows.input_ids.tolist() == [12 + position]
    assert reports[:3] == [PROMPT_TOKEN] * 3
    assert min(reports[3:]) >= 0
    assert rows.input_ids.tolist() == reports[-1:]


def test_a_row_that_waits_reports_its_token_and_stays() -> None:
    free, waiting = Rows(some_logits(), seed=4), Rows(some_logits(), seed=4, mode=HOST_CONTROLLED)
    waiting.records["fed_tokens"][0, 1] = 5  # its prompt is fed all the same
    waiting.records["prompt_length"] = 2
    assert waiting.step().tolist() == [PROMPT_TOKEN]
    token_id = free.step()[0]
    for _ in range(2):
        assert waiting.step().tolist() == [PROPOSED - token_id]
        assert (waiting.input_ids.tolist(), waiting.positions.tolist()) == ([5], [1])


def test_a_row_that_stands_does_nothing() -> None:
    rows = Rows(some_logits(), mode=IDLE)
    rows.records["fed_tokens"][0, 1] = 5
    assert rows.step()[0] <= PROPOSED
    assert (rows.input_ids.tolist(), rows.positions.tolist()) == ([0], [0])


def test_a_row_goes_no_further_than_its_last_position() -> None:
    rows = Rows(some_logits(), last_position=1)
    for expected in (1, 1, 1):
        rows.step()
        assert rows.positions.tolist() == [expected]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_left_to_the_host(bad: float, temperature: float) -> None:
    logits = some_logits()
    logits[17] = bad
    rows = Rows(np.stack([logits, some_logits(), np.full(VOCAB_SIZE, -np.inf)]), temperature=temperature)
    first, second, third = rows.step().tolist()
    assert (first, third) == (NOT_FINITE, NOT_FINITE)
    assert second >= 0
    assert rows.positions.tolist() == [0, 1, 0]


def test_end_of_text_does_not_come_below_the_minimum_length() -> None:
    logits = np.full(VOCAB_SIZE, -5.0)
    logits[EOS] = 20
    rows = Rows(np.tile(logits, (200, 1)), min_length=2)
    rows.records["eos_token_ids"][:, 0] = EOS
    assert EOS not in rows.step()
    assert (rows.step() == EOS).all()


def test_penalties_are_those_of_the_host_over_several_tokens() -> None:
    params = SequenceParams(
        max_tokens=99,
        seed=0,
        repetition_penalty=1.7,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias=((3, 6.0), (4, -np.inf)),
    )
    prompt, logits = (3, 9), some_logits(2) * 2
    bias, penalty = adjustment(params, prompt, (), VOCAB_SIZE)
    rows = Rows(logits, temperature=0, is_adjusted=1)
    rows.logit_bias[0], rows.repetition_penalty[0] = bias, penalty
    rows.records["repetition_penalty"] = params.repetition_penalty
    rows.records["frequency_penalty"] = params.frequency_penalty
    rows.records["first_penalty"] = params.frequency_penalty + params.presence_penalty
    output: list[int] = []
    for _ in range(40):
        expected = process_logits(logits, bias, penalty, params, [*prompt, *output], len(output)).argmax()
        assert rows.step().tolist() == [expected]
        add_token(bias, penalty, params, int(expected), expected not in output)
        output.append(int(expected))
        assert (rows.logit_bias[0] == bias).all()
        assert (rows.repetition_penalty[0] == penalty).all()
    assert len(set(output)) > 3
    assert (rows.token_counts[0] == np.bincount(output, minlength=VOCAB_SIZE)).all()


# How many blocks sample a row, and what a GPU without clusters or with less memory takes.


ADDRESSES = [0] * 8


class LimitedDevice:
    """A GPU with these limits, whose kernel can run so many clusters of each size at once."""

    def __init__(self, capability: tuple[int, int], max_shared_bytes: int, **max_clusters: int) -> None:
        self.attributes = {COMPUTE_CAPABILITY_MAJOR: capability[0], MAX_SHARED_BYTES_OPTIN: max_shared_bytes}
        self.max_clusters = {int(name.removeprefix("of_")): number for name, number in max_clusters.items()}
        self.defines: dict[str, int] = {}
        self.launches: list[tuple[int, int, int]] = []

    def attribute(self, attribute: int) -> int:
        return self.attributes[attribute]

    def kernel(self, *_: Any, defines: dict[str, int], **__: Any) -> LimitedDevice:
        self.defines = defines
        return self

    name = "cuda:0"

    def at_work(self) -> AbstractContextManager[None]:
        return nullcontext()

    def max_active_clusters(self, cluster_size: int, shared_bytes: int) -> int:
        assert shared_bytes <= self.attributes[MAX_SHARED_BYTES_OPTIN]
        return self.max_clusters[cluster_size]

    def launch(self, num_rows: int, *, cluster_size: int, shared_bytes: int) -> None:
        self.launches.append((num_rows, cluster_size, shared_bytes))


def test_few_rows_are_sampled_by_more_blocks_each() -> None:
    device: Any = LimitedDevice((9, 0), 227 << 10, of_2=66, of_4=32, of_8=16)
    sampler = Sampler(device, 50_257, np.float16, ADDRESSES)
    assert device.defines["KEEPS_LEVELS"] == 1
    assert [sampler.cluster_size(n) for n in (1, 16, 17, 32, 64, 67, 128, 256)] == [8, 8, 4, 4, 2, 1, 1, 1]
    for _ in range(2):
        sampler.launch(64)
    assert device.launches == [(64, 2, shared_bytes(50_257, 2))] * 2


@pytest.mark.parametrize(
    ("capability", "max_shared_bytes", "vocab_size", "keeps_levels", "sizes"),
    [
        ((8, 0), 163 << 10, 50_257, False, {1}),  # A100
        ((8, 0), 163 << 10, 30_000, True, {1}),
        ((12, 0), 99 << 10, 50_257, True, {4, 8}),  # two blocks take 108 KB each
        ((9, 0), 227 << 10, 120_000, True, {4, 8}),
        ((9, 0), 227 << 10, 600_000, False, {1, 2, 4, 8}),
    ],
    ids=str,
)
def test_levels_are_kept_where_they_fit(
    capability: tuple[int, int], max_shared_bytes: int, vocab_size: int, keeps_levels: bool, sizes: set[int]
) -> None:
    device: Any = LimitedDevice(capability, max_shared_bytes, of_2=60, of_4=30, of_8=10)
    sampler = Sampler(device, vocab_size, np.float16, ADDRESSES)
    assert device.defines["KEEPS_LEVELS"] == sampler.keeps_levels == keeps_levels
    assert {sampler.cluster_size(n) for n in range(1, 257)} == sizes


def test_a_cluster_that_the_gpu_cannot_run_is_not_launched() -> None:
    device: Any = LimitedDevice((9, 0), 227 << 10, of_2=5, of_4=0, of_8=0)
    assert Sampler(device, 50_257, np.float16, ADDRESSES).cluster_size(1) == 2
    device = LimitedDevice((12, 0), 99 << 10, of_2=0, of_4=0, of_8=0)
    sampler = Sampler(device, 50_257, np.float16, ADDRESSES)
    assert (sampler.keeps_levels, sampler.cluster_size(1)) == (False, 1)


def test_a_vocabulary_beyond_the_shared_memory_is_named() -> None:
    device: Any = LimitedDevice((8, 0), 163 << 10)
    with pytest.raises(ModelFormatError, match=r"vocabulary of 16,777,216 tokens is too large for cuda:0"):
        Sampler(device, 1 << 24, np.float16, ADDRESSES)


@pytest.mark.parametrize(("architecture", "keeps_levels"), [("sm_75", False), ("sm_90", True)])
def test_nvcc_compiles_it_and_for_hopper_without_spills(
    architecture: str, keeps_levels: bool, tmp_path: Path
) -> None:
    """What the host does not compile: the instructions of clusters and of half precision.

    Each side of both conditions once: what depends on the architecture does not depend on kept levels.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed")
    defines = sampler_defines(50_257, np.float16, keeps_levels=keeps_levels) | {"BLOCK": BLOCK_SIZE}
    done = subprocess.run(
        [nvcc, f"-arch={architecture}", "-cubin", "-Xptxas", "-v", "-o", str(tmp_path / "sampler.cubin")]
        + [f"-D{name}={value}" for name, value in defines.items()]
        + [str(SOURCE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if architecture == "sm_90":
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr
