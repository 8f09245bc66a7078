"""The host's filters beside transformers' processors and warpers, and brute force."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.transformers_filters import (
    ADDITIVE,
    PENALTIES,
    PROCESSORS,
    WARPERS,
    V,
    exact_probs,
    id_sets,
    normal_logits,
    params_of,
    processors,
    rows,
    theirs,
    token_ids,
)

from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.errors import ParameterError
from hgt_infer.sampling.host import filtered_probs, process_logits
from hgt_infer.sampling.settings import add_token, adjustment, is_adjusted, needs_host


def processed(
    logits: NDArray[np.float32], params: SequenceParams, prompt: list[int], output: list[int]
) -> NDArray[np.float32]:
    """As the runner does it."""
    rows = adjustment(params, prompt, output, len(logits)) if is_adjusted(params) else (None, None)
    return process_logits(logits, *rows, params, prompt + output, len(output))


@pytest.mark.parametrize("name", [*PROCESSORS, "all"])
@given(data=st.data())
def test_processors_equal_transformers_bit_by_bit_alone_and_together(name: str, data: st.DataObject) -> None:
    chosen = PROCESSORS if name == "all" else {name: PROCESSORS[name]}
    ending = {"eos_token_ids": data.draw(id_sets), "stop_token_ids": data.draw(id_sets)}
    params = params_of(**data.draw(st.fixed_dictionaries(chosen)), **ending)
    logits = data.draw(rows)
    prompt = data.draw(st.lists(token_ids, min_size=1, max_size=12))
    output = data.draw(st.lists(token_ids, max_size=12))
    before = logits.copy()
    ours = processed(logits, params, prompt, output)
    chain = processors(params, len(prompt))
    np.testing.assert_array_equal(ours, theirs(chain, torch.tensor(logits), prompt + output).numpy())
    np.testing.assert_array_equal(logits, before)
    assert not np.shares_memory(ours, logits)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000, 1025])
def test_ngrams_of_a_long_context_equal_transformers(size: int) -> None:
    ids = np.random.default_rng(0).integers(0, 7, 1024).tolist()
    logits = normal_logits(0, 7)
    params = params_of(no_repeat_ngram_size=size)
    expected = theirs(processors(params, 4), torch.tensor(logits), ids).numpy()
    np.testing.assert_array_equal(processed(logits, params, ids[:4], ids[4:]), expected)


@pytest.mark.parametrize("prompt", [[1], [0, 1], [1, 2], [1, 2, 1]])
def test_a_bad_word_that_began_in_the_prompt_equals_transformers(prompt: list[int]) -> None:
    """A prompt that is nothing but its beginning lets it through, there too."""
    logits, params = normal_logits(0, V), params_of(bad_words_ids=((1, 3), (1, 2, 1, 4)))
    expected = theirs(processors(params, len(prompt)), torch.tensor(logits), prompt).numpy()
    np.testing.assert_array_equal(processed(logits, params, prompt, []), expected)


@pytest.mark.parametrize("name", [*WARPERS, "all"])
@given(data=st.data())
def test_warpers_equal_transformers_alone_and_together(name: str, data: st.DataObject) -> None:
    params = params_of(
        **data.draw(st.fixed_dictionaries(WARPERS if name == "all" else {name: WARPERS[name]}))
    )
    logits = data.draw(rows)
    logits[list(data.draw(st.frozensets(token_ids, max_size=V - 1)))] = -np.inf
    if params.typical_p < 1:
        assume(not has_typical_tie(exact_probs(logits, dataclasses.replace(params, typical_p=1.0))))
    ours, expected = filtered_probs(logits, params), exact_probs(logits, params)
    if params.top_p < 1:  # which of several equal ones is cut off at top_p is not defined there
        ours, expected = np.sort(ours), np.sort(expected)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-300)


def has_typical_tie(probs: NDArray[np.float64]) -> bool:
    """Whether tokens that are not equally likely are equally typical but for rounding, which then chooses."""
    kept = np.unique(probs[probs > 0])
    surprise = -np.log(kept)
    counts = np.array([np.count_nonzero(probs == value) for value in kept])
    distances = np.sort(np.abs(surprise - (counts * kept * surprise).sum()))
    return bool((np.diff(distances) < 1e-9).any())


@pytest.mark.parametrize("temperature", [0.5, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500, 20_000])
@pytest.mark.parametrize("top_p", [0.01, 0.6, 0.95, 1.0])
@pytest.mark.parametrize(
    "other", [{}, {"min_p": 0.02}, {"typical_p": 0.4}, {"min_p": 1e-4, "typical_p": 0.97}]
)
def test_warpers_of_a_whole_vocabulary_equal_transformers(
    temperature: float, top_k: int, top_p: float, other: dict[str, float]
) -> None:
    logits = normal_logits(0, 50_257)
    params = params_of(temperature=temperature, top_k=top_k, top_p=top_p, **other)
    np.testing.assert_allclose(filtered_probs(logits, params), exact_probs(logits, params), atol=1e-12)


@pytest.mark.parametrize("num_kept", range(1, 8))
def test_a_mass_that_is_reached_exactly_is_enough(num_kept: int) -> None:
    """Of eight equal tokens; transformers keeps as many, we those with the lowest ids."""
    logits, params = np.zeros(8, np.float32), params_of(top_p=num_kept / 8)
    ours = filtered_probs(logits, params)
    assert np.flatnonzero(ours).tolist() == list(range(num_kept))
    assert np.count_nonzero(exact_probs(logits, params)) == num_kept


@given(data=st.data())
def test_penalties_of_the_output_and_masks_equal_brute_force(data: st.DataObject) -> None:
    params = params_of(
        **data.draw(st.fixed_dictionaries({**ADDITIVE, **PENALTIES})),
        bad_words_ids=((3,), (4, 5)),
    )
    prompt, output = data.draw(st.lists(token_ids)), data.draw(st.lists(token_ids))
    logit_bias, repetition_penalty = adjustment(params, prompt, output, V)
    bias, counts = dict(params.logit_bias), Counter(output)
    for id_ in range(V):
        expected = bias.get(id_, 0.0)
        expected -= params.presence_penalty * (counts[id_] > 0) + params.frequency_penalty * counts[id_]
        if id_ == 3 or (params.allowed_token_ids is not None and id_ not in params.allowed_token_ids):
            expected = -np.inf
        assert logit_bias[id_] == pytest.approx(expected, abs=1e-4)
    assert (repetition_penalty == 1).all()


@given(data=st.data())
def test_adjustments_brought_up_to_date_equal_those_made_anew(data: st.DataObject) -> None:
    params = params_of(**data.draw(st.fixed_dictionaries({}, optional={**PROCESSORS, **PENALTIES})))
    prompt, output = data.draw(st.lists(token_ids)), data.draw(st.lists(token_ids))
    kept = adjustment(params, prompt, (), V)
    for index, token_id in enumerate(output):
        add_token(*kept, params, token_id, token_id not in output[:index])
        for ours, anew in zip(kept, adjustment(params, prompt, output[: index + 1], V), strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_array_equal(ours, anew)


@given(data=st.data())
def test_a_row_that_is_not_adjusted_has_neutral_adjustments(data: st.DataObject) -> None:
    options = {**PROCESSORS, **PENALTIES, **WARPERS}
    params = params_of(**data.draw(st.fixed_dictionaries({}, optional=options)))
    logit_bias, repetition_penalty = adjustment(params, [1, 2], [2, 2, 3], V)
    if not is_adjusted(params):
        assert (logit_bias == 0).all()
        assert (repetition_penalty == 1).all()


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": ((1, 2.0),)},
        {"presence_penalty": -0.5},
        {"frequency_penalty": 0.5},
        {"allowed_token_ids": (1,)},
        {"repetition_penalty": 1.1},
        {"bad_words_ids": ((1, 2), (3,))},
    ],
)
def test_each_setting_of_the_adjustments_asks_for_them(options: dict[str, Any]) -> None:
    assert is_adjusted(params_of(**options))
    assert not is_adjusted(params_of(bad_words_ids=((1, 2),), min_tokens=3, no_repeat_ngram_size=2))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"top_k": 256, "top_p": 0.9, "min_p": 0.1}, False),
        ({"top_k": 257}, True),
        ({"top_k": 999}, True),
        ({"top_k": 1000}, False),  # the vocabulary: off
        ({"top_k": 257, "temperature": 0.0}, False),
        ({"typical_p": 0.9}, True),
        ({"typical_p": 0.9, "temperature": 0.0}, False),
        ({"no_repeat_ngram_size": 2, "temperature": 0.0}, True),
        ({"bad_words_ids": ((1,),)}, False),
        ({"bad_words_ids": ((1,), (2, 3))}, True),
        ({"logits_processor": lambda ids, logits: logits}, True),
        ({"stop_token_ids": frozenset({1})}, False),
        ({"min_tokens": 2}, False),
        ({"stop_token_ids": frozenset({1}), "min_tokens": 2}, True),
    ],
)
def test_the_host_samples_what_the_graph_cannot(options: dict[str, Any], expected: bool) -> None:
    assert needs_host(params_of(**options), 1000) is expected


def test_a_logits_processor_comes_after_min_tokens_and_before_temperature() -> None:
    seen = []

    def double(ids: list[int], logits: NDArray[np.float32]) -> NDArray[np.float64]:
        seen.append((list(ids), logits.tolist()))
        ids.clear()
        logits *= 2
        return logits.astype(np.float64)

    params = params_of(
        logits_processor=double, temperature=0.5, min_tokens=2, eos_token_ids={0}, logit_bias=((1, 3.0),)
    )
    logits, ids = np.ones(3, np.float32), [1, 2]
    rows = adjustment(params, [1], [2], 3)
    ours = process_logits(logits, *rows, params, ids, 1)
    assert ours.dtype == np.float32
    assert ours.tolist() == [-np.inf, 8, 2]
    assert seen == [([1, 2], [-np.inf, 4, 1])]
    assert (logits.tolist(), ids) == ([1, 1, 1], [1, 2])
    assert filtered_probs(ours, params) == pytest.approx([0, 1, np.exp(-12)], rel=1e-4)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "NoneType"),
        ([0.0, 0.0, 0.0], "list"),
        (np.zeros(2, np.float32), r"float32 \[2\]"),
        (np.zeros((1, 3), np.float32), r"float32 \[1, 3\]"),
        (np.zeros(3, np.int64), r"int64 \[3\]"),
        (np.zeros(3, np.complex64), r"complex64 \[3\]"),
        (np.array([0, np.nan, 0]), "one at 1"),
        (np.array([0, 0, np.inf]), "one at 2"),
        (np.array([1e300, 0, 0]), "one at 0"),
        (torch.zeros(3), "Tensor"),
    ],
)
def test_a_logits_processor_must_return_logits(result: object, message: str) -> None:
    params = params_of(logits_processor=lambda ids, logits: result)
    with pytest.raises(
        ParameterError, match=rf"logits_processor must return .*shape \[3\].*; got.*{message}"
    ):
        process_logits(np.zeros(3, np.float32), None, None, params, [1], 0)


def test_an_exception_in_a_logits_processor_is_the_callers() -> None:
    params = params_of(logits_processor=lambda ids, logits: {}["missing"])
    with pytest.raises(KeyError, match="missing"):
        process_logits(np.zeros(3, np.float32), None, None, params, [1], 0)
