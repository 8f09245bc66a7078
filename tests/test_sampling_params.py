"""What SamplingParams takes, what it refuses and how it says so."""

from __future__ import annotations

import itertools
import math
import pickle
from collections import UserList, deque
from collections.abc import Collection, Iterator
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hgt_infer import ParameterError, SamplingParams
from hgt_infer.checks import MAX_INTEGER
from hgt_infer.sampling_params import (
    MAX_BAD_WORD_CHARACTERS,
    MAX_BAD_WORDS,
    MAX_STOP_STRING_CHARACTERS,
    MAX_STOP_STRINGS,
    MAX_TOKEN_IDS,
    Setting,
    sampling_settings,
)

HUGE = 10**400  # beyond float
UNPRINTABLE = 10**5000  # beyond what Python turns into a string

INTEGERS = {  # name: smallest, largest
    "n": (1, 16_384),
    "best_of": (1, 16_384),
    "top_k": (0, 2**31 - 1),
    "no_repeat_ngram_size": (0, 2**31 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "seed": (0, 2**64 - 1),
    "logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
}
NUMBERS = {  # name: allowed, refused
    "temperature": ([0, 1e-300, 1, 1e300], [-1e-300]),
    "top_p": ([1e-300, 0.5, 1], [0, -0.5, math.nextafter(1, 2)]),
    "min_p": ([0, 0.5, 1], [-1e-300, math.nextafter(1, 2)]),
    "typical_p": ([1e-300, 0.5, 1], [0, -0.5, math.nextafter(1, 2)]),
    "repetition_penalty": ([0.001, 1, 1000], [0, -1, 0.0009, 1000.1]),
    "presence_penalty": ([-2, 0, 2], [-2.1, 2.1]),
    "frequency_penalty": ([-2, 0, 2], [-2.1, 2.1]),
}
COLLECTIONS = ["logit_bias", "allowed_token_ids", "bad_words", "stop", "stop_token_ids"]
NOT_NUMBERS = ["1", b"1", True, False, [1], {1: 1}, 1j, object(), np.bool_(True), np.array([1])]


class Endless(Collection[Any]):
    """A collection that lies about its length."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[int]:
        return itertools.count()

    def __contains__(self, item: object) -> bool:
        return True


def assert_refused(options: dict[str, Any]) -> str:
    """The last of the options is named, with what is allowed and what was got, at a bounded length."""
    name = list(options)[-1]
    with pytest.raises(ParameterError, match=rf"^{name} must (be|have) .*; got ") as caught:
        SamplingParams(**options)
    message = str(caught.value)
    assert len(message) < 300
    return message


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_taken_within_their_range_alone(name: str) -> None:
    low, high = INTEGERS[name]
    for value in (low, high):
        assert getattr(SamplingParams(**{name: value}), name) == value
    for value in (low - 1, high + 1, -HUGE, HUGE, UNPRINTABLE, -UNPRINTABLE):
        assert f"{low} … {high}; got" in assert_refused({name: value})
    for value in [1.5, 1.0, math.nan, math.inf, np.float32(1), *NOT_NUMBERS]:
        assert_refused({name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_taken_within_their_range_alone(name: str) -> None:
    allowed, refused = NUMBERS[name]
    for value in allowed:
        taken = getattr(SamplingParams(**{name: value}), name)
        assert type(taken) is float
        assert taken == value
    for value in [
        *refused,
        math.nan,
        math.inf,
        -math.inf,
        HUGE,
        -HUGE,
        UNPRINTABLE,
        Fraction(HUGE),
        *NOT_NUMBERS,
    ]:
        assert_refused({name: value})


def test_the_value_is_in_the_message() -> None:
    assert assert_refused({"n": 10**9}).endswith("got 1000000000")
    assert assert_refused({"temperature": -0.1}).endswith("got -0.1")
    assert assert_refused({"top_p": math.nan}).endswith("got nan")
    assert assert_refused({"top_p": np.float32(-0.5)}).endswith("got -0.5")
    assert assert_refused({"seed": UNPRINTABLE}).endswith("got an integer of 16610 bits")
    assert assert_refused({"stop": ["a", 5]}).endswith("got 5")
    assert assert_refused({"stop_token_ids": [3, "x" * 10**6]}).endswith(f"got '{'x' * 30}…'")
    assert assert_refused({"logit_bias": {1: 100.5}}).endswith("got 100.5")
    assert assert_refused({"logits_processor": 3}).endswith("callable; got 3")


def test_pairs_that_contradict_each_other_are_refused() -> None:
    assert assert_refused({"n": 3, "best_of": 2}).endswith("3 … 16384; got 2")
    assert "at most max_tokens (3); got 4" in assert_refused({"max_tokens": 3, "min_tokens": 4})
    assert SamplingParams(n=3, best_of=3, max_tokens=3, min_tokens=3).best_of == 3


@pytest.mark.parametrize("name", ["ignore_eos", "include_stop_str_in_output"])
def test_flags_are_true_or_false(name: str) -> None:
    assert getattr(SamplingParams(**{name: True}), name) is True
    for value in (0, 1, None, "true", np.bool_(True)):
        assert_refused({name: value})


def test_n_is_not_none() -> None:
    assert_refused({"n": None})


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids"])
@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, deque, UserList, np.array])
def test_token_ids_are_copied_into_an_ascending_tuple(name: str, kind: Any) -> None:
    ids = getattr(SamplingParams(**{name: kind([1000, 3, 1000, 8])}), name)
    assert ids == (3, 8, 1000)
    assert all(type(token_id) is int for token_id in ids)
    assert getattr(SamplingParams(**{name: dict.fromkeys([7, 3]).keys()}), name) == (3, 7)
    assert getattr(SamplingParams(**{name: range(50_257)}), name) == tuple(range(50_257))


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids", "logit_bias"])
def test_token_ids_are_integers(name: str) -> None:
    for token_id in [-1, 2**31, HUGE, UNPRINTABLE, 1.0, math.nan, True, "1", None, (1,)]:
        assert_refused({name: {token_id: 1} if name == "logit_bias" else [2, token_id]})


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids"])
@pytest.mark.parametrize(
    "value", ["12", b"12", {1: 1}, 5, iter([1]), itertools.count(), np.zeros((2, 2), int)]
)
def test_token_ids_come_as_a_collection(name: str, value: Any) -> None:
    assert_refused({name: value})


@pytest.mark.parametrize("value", ["12", 5, [1, 2], [(1,)], [(1, 2, 3)], ["ab"], iter([]), itertools.count()])
def test_a_logit_bias_is_a_mapping(value: Any) -> None:
    assert_refused({"logit_bias": value})


def test_a_logit_bias_is_within_its_range() -> None:
    for bias in [-100.1, 101, math.nan, math.inf, HUGE, UNPRINTABLE, "1", None, True]:
        assert_refused({"logit_bias": {5: bias}})
    assert SamplingParams(logit_bias={5: -100, 3: 100}).logit_bias == ((3, 100.0), (5, -100.0))


@pytest.mark.parametrize("name", ["stop", "bad_words"])
@pytest.mark.parametrize(
    "value",
    [
        b"ab",
        5,
        {"a": 1},
        {"a"},
        iter(["a"]),
        itertools.count(),
        [""],
        ["a", ""],
        [5],
        [None],
        [b"a"],
        ["\ud800"],
    ],
)
def test_strings_come_as_a_sequence_of_unicode_strings(name: str, value: Any) -> None:
    assert_refused({name: value})


def test_a_single_stop_string_is_one_and_a_single_bad_word_is_none() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["b", "a"]).stop == ("b", "a")
    assert_refused({"bad_words": "ab"})
    assert_refused({"stop": ""})


@pytest.mark.parametrize(
    ("name", "max_count", "max_characters"),
    [
        ("stop", MAX_STOP_STRINGS, MAX_STOP_STRING_CHARACTERS),
        ("bad_words", MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS),
    ],
)
def test_strings_are_bounded_in_number_and_length(name: str, max_count: int, max_characters: int) -> None:
    full = ["a" * max_characters] * max_count
    assert getattr(SamplingParams(**{name: full}), name) == tuple(full)
    assert f"more than {max_count:,}" in assert_refused({name: [*full, "a"]})
    assert f"more than {max_count:,}" in assert_refused({name: ["a"] * 10**6})
    assert_refused({name: ["a" * (max_characters + 1)]})
    assert_refused({name: ["a" * 10**7]})


@pytest.mark.parametrize("name", ["allowed_token_ids", "stop_token_ids", "logit_bias"])
def test_ids_are_bounded_in_number_without_reading_all(name: str) -> None:
    more = f"more than {MAX_TOKEN_IDS:,}"
    if name == "logit_bias":
        assert more in assert_refused({name: dict.fromkeys(range(MAX_TOKEN_IDS + 1), 1)})
    else:
        assert more in assert_refused({name: range(HUGE)})
        assert more in assert_refused({name: Endless()})
        assert len(getattr(SamplingParams(**{name: range(MAX_TOKEN_IDS)}), name)) == MAX_TOKEN_IDS


def test_nothing_allowed_is_refused_and_nothing_else_is_nothing() -> None:
    assert "at least one token id; got none" in assert_refused({"allowed_token_ids": []})
    params = SamplingParams(stop=[], stop_token_ids=[], bad_words=[], logit_bias={})
    assert (params.stop, params.stop_token_ids, params.bad_words, params.logit_bias) == ((), (), (), ())


def test_a_later_change_of_a_callers_collection_changes_nothing() -> None:
    given: dict[str, Any] = {
        "logit_bias": {1: 2.0},
        "allowed_token_ids": [1, 2],
        "bad_words": ["a"],
        "stop": ["b"],
        "stop_token_ids": {3},
    }
    params = SamplingParams(**given)
    expected = SamplingParams(
        logit_bias={1: 2}, allowed_token_ids=(2, 1, 1), bad_words=("a",), stop="b", stop_token_ids=[3]
    )
    for collection in given.values():
        collection.clear()
    assert params == expected
    assert hash(params) == hash(expected)


def test_copies_equal_their_original() -> None:
    params = SamplingParams(
        n=2,
        logit_bias={5: -1, 3: 2},
        allowed_token_ids={1, 3},
        bad_words=["x"],
        stop="y",
        stop_token_ids=[7],
        logits_processor=print,
        seed=1,
    )
    assert replace(params) == params
    assert pickle.loads(pickle.dumps(params)) == params
    assert replace(params, logit_bias=None).logit_bias is None


def test_numbers_of_numpy_become_pythons() -> None:
    params = SamplingParams(
        n=np.int64(3),
        seed=np.uint64(2**64 - 1),
        top_p=np.float32(0.5),
        logit_bias={np.int32(4): np.float16(2)},
    )
    assert repr((params.n, params.seed, params.top_p)) == "(3, 18446744073709551615, 0.5)"
    assert repr(params.logit_bias) == "((4, 2.0),)"


def test_every_argument_is_documented_and_keyword_only() -> None:
    assert SamplingParams.__doc__ is not None
    for field in fields(SamplingParams):
        assert f"\n        {field.name}: " in SamplingParams.__doc__
        assert field.kw_only
    tested = {
        *INTEGERS,
        *NUMBERS,
        *COLLECTIONS,
        "ignore_eos",
        "include_stop_str_in_output",
        "logits_processor",
    }
    assert tested == {field.name for field in fields(SamplingParams)}


def in_words(setting: Setting) -> str:
    """A range as the docstring writes it."""
    allowed = setting.allowed
    assert allowed is not None
    if allowed.high is None or (allowed.high == MAX_INTEGER and not allowed.is_open):
        return f"≥ {allowed.low:g}"
    if setting.name == "seed":
        return "0 … 2**64 - 1"
    low = "n" if setting.name == "best_of" else f"{allowed.low:g}"
    return f"({low}, {allowed.high:g}]" if allowed.is_open else f"{low} … {allowed.high:,g}"


@pytest.mark.parametrize("setting", sampling_settings().values(), ids=sampling_settings())
def test_the_docstring_describes_every_setting_with_its_range(setting: Setting) -> None:
    assert setting.description.endswith((".", "is off."))
    if setting.allowed is not None:
        assert in_words(setting) in setting.description


def test_the_settings_are_the_fields() -> None:
    assert [*sampling_settings()] == [field.name for field in fields(SamplingParams)]
    defaults = {name: setting.default for name, setting in sampling_settings().items()}
    assert defaults == {name: getattr(SamplingParams(), name) for name in defaults}
