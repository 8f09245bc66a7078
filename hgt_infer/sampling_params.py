"""SamplingParams: how the tokens of one request are chosen. It checks itself; nothing is resolved here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import islice
from typing import Any, get_args, get_type_hints

from hgt_infer.checks import (
    MAX_INTEGER,
    Range,
    as_float,
    as_int,
    check_bool,
    check_int,
    check_number,
    parameter_error,
    shown,
)
from hgt_infer.errors import ParameterError

MAX_SAMPLES = 16_384
"""Most samples that one request may ask for."""

MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1e-3, 1e3
"""What float32 logits can be divided and multiplied by."""

MAX_LOGPROBS = 20
MAX_TOKEN_IDS = 1 << 18  # more than any GPT-2's vocabulary
MAX_STOP_STRINGS, MAX_STOP_STRING_CHARACTERS = 16, 256
MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS = 1_024, 256

_RANGE = "range"  # key of a number's Range in the metadata of its field


def _within(low: float, high: float | None = None, *, is_open: bool = False) -> dict[str, Range]:
    return {_RANGE: Range(low, high, is_open)}


_COUNT, _LOGPROBS = _within(0, MAX_INTEGER), _within(0, MAX_LOGPROBS)
_PENALTY, _REPETITION_PENALTY = _within(-2, 2), _within(MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
_PROBABILITY = _within(0, 1, is_open=True)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Settings of one request; None leaves a setting to the checkpoint, or switches it off.

    Collections are copied into tuples: changing one afterwards changes nothing here. NumPy's integers and
    numbers are taken for Python's.

    How many:
        n: samples for each prompt, 1 … 16,384.
        best_of: samples that are drawn for each prompt, n … 16,384 (n if not given); the n with the
            highest mean log-probability per token are returned, the best one first.
        max_tokens: most tokens to generate, ≥ 1. Generation also ends where the context is full.

    Filters, in the order in which they are applied, transformers' own:
        logit_bias: token id → number in -100 … 100 that is added to its logit; at most 262,144 ids.
        presence_penalty: subtracted from the logit of each token that was generated before, -2 … 2.
        frequency_penalty: subtracted once for each time that a token was generated before, -2 … 2.
        allowed_token_ids: the only tokens that may be sampled, 1 … 262,144 ids.
        repetition_penalty: divides the logit of each token in prompt and output, a negative one is
            multiplied, 0.001 … 1,000; 1 is off (Keskar et al., "CTRL", 2019).
        no_repeat_ngram_size: this many tokens in a row do not occur twice in prompt and output, ≥ 0; 0 is
            off.
        bad_words: texts that are not sampled, alone or after a space, in the tokens that they are encoded
            to; at most 1,024 of at most 256 characters.
        min_tokens: no end-of-text, stop token or stop string before this many tokens, ≥ 0.
        logits_processor: called as f(token_ids, logits) with the ids of prompt and output (list[int]) and
            the logits so far (float32 array [V], f's own), returns a float array [V] without NaN and
            +infinity. It runs on the engine's thread, where everybody waits for it. An exception in it ends
            its own request.
        temperature: divides the logits, ≥ 0; below 1e-5 is greedy, whatever the filters after it say.
        top_k: keep the k likeliest tokens (and ties with the last of them), ≥ 0; 0 is off.
        top_p: keep the smallest set of likeliest tokens whose mass reaches top_p, in (0, 1]; 1 is off.
        min_p: keep the tokens that are at least min_p times as likely as the likeliest, 0 … 1; 0 is off.
        typical_p: keep the smallest set of tokens nearest to the entropy whose mass reaches typical_p, in
            (0, 1] (Meister et al., "Locally typical sampling", 2022); 1 is off.

        The device samples a row itself, but for those with typical_p, no_repeat_ngram_size, a bad word of
        several tokens, logits_processor, top_k above 256, or both stop_token_ids and min_tokens: these
        go through the host, more slowly.

    Where a sample ends:
        stop: a text or texts that end a sample once it contains one; at most 16 of at most 256 characters.
        stop_token_ids: tokens that end a sample as end-of-text does.
        include_stop_str_in_output: whether the text has the stop string or stop token that ended it.
        ignore_eos: whether end-of-text ends nothing.

    Random numbers:
        seed: makes samples repeatable, 0 … 2**64 - 1: the same prompt, settings and seed give the same
            tokens, alone or in company. One that is not given is drawn; the output states it.

    What is reported:
        logprobs: the log-probability of each sampled token, and of this many of the likeliest ones at its
            position, 0 … 20. They are the model's own, before any filter and temperature.
        prompt_logprobs: the same of the prompt's tokens, 0 … 20.

    Raises:
        ParameterError: a value outside its range, or a pair that contradicts itself.

    >>> params = SamplingParams(n=5, top_p=0.95, stop="\\n", logit_bias={11: -2}, seed=1)
    >>> params.stop, params.logit_bias
    (('\\n',), ((11, -2.0),))
    >>> SamplingParams(temperature=-1)
    Traceback (most recent call last):
    hgt_infer.errors.ParameterError: temperature must be a finite number >= 0; got -1
    """

    n: int = field(default=1, metadata=_within(1, MAX_SAMPLES))
    best_of: int | None = field(default=None, metadata=_within(1, MAX_SAMPLES))
    max_tokens: int | None = field(default=None, metadata=_within(1, MAX_INTEGER))
    logit_bias: Mapping[int, float] | Collection[tuple[int, float]] | None = None
    presence_penalty: float | None = field(default=None, metadata=_PENALTY)
    frequency_penalty: float | None = field(default=None, metadata=_PENALTY)
    allowed_token_ids: Collection[int] | None = None
    repetition_penalty: float | None = field(default=None, metadata=_REPETITION_PENALTY)
    no_repeat_ngram_size: int | None = field(default=None, metadata=_COUNT)
    bad_words: Seq[str] | None = None
    min_tokens: int | None = field(default=None, metadata=_COUNT)
    logits_processor: Callable[[list[int], Any], Any] | None = None
    temperature: float | None = field(default=None, metadata=_within(0))
    top_k: int | None = field(default=None, metadata=_COUNT)
    top_p: float | None = field(default=None, metadata=_PROBABILITY)
    min_p: float | None = field(default=None, metadata=_within(0, 1))
    typical_p: float | None = field(default=None, metadata=_PROBABILITY)
    stop: str | Seq[str] | None = None
    stop_token_ids: Collection[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = field(default=None, metadata=_within(0, 2**64 - 1))
    logprobs: int | None = field(default=None, metadata=_LOGPROBS)
    prompt_logprobs: int | None = field(default=None, metadata=_LOGPROBS)

    def __post_init__(self) -> None:
        def put(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name, (is_integer, allowed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name != "n":
                continue
            if is_integer:
                low = self.n if name == "best_of" else int(allowed.low)
                put(name, check_int(name, value, low, int(allowed.high or 0)))
            else:
                put(name, check_number(name, value, allowed))
        if self.max_tokens is not None and self.min_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError(
                f"min_tokens must be at most max_tokens ({self.max_tokens}); got {self.min_tokens}"
            )
        for name in ("include_stop_str_in_output", "ignore_eos"):
            check_bool(name, getattr(self, name))
        for name in ("allowed_token_ids", "stop_token_ids"):
            if getattr(self, name) is not None:
                put(name, _token_ids(name, getattr(self, name)))
        if self.allowed_token_ids == ():
            raise ParameterError("allowed_token_ids must have at least one token id; got none")
        if self.logit_bias is not None:
            put("logit_bias", _logit_bias(self.logit_bias))
        if self.stop is not None:
            stop = (self.stop,) if isinstance(self.stop, str) else self.stop
            what = "a string or a sequence of at most"
            put("stop", _strings("stop", stop, what, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARACTERS))
        if self.bad_words is not None:
            words, what = self.bad_words, "a sequence of at most"
            put("bad_words", _strings("bad_words", words, what, MAX_BAD_WORDS, MAX_BAD_WORD_CHARACTERS))
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise parameter_error("logits_processor", "callable", self.logits_processor)


@dataclass(frozen=True, slots=True)
class Setting:
    """A field of SamplingParams, as other interfaces than Python's need it.

    Attributes:
        name: of the field.
        type: of its values, None not among them where it is a number.
        allowed: the range of a number; None for others.
        default: None leaves the setting to the checkpoint, or switches it off.
        description: what the docstring of SamplingParams says of it, in one line.
    """

    name: str
    type: Any
    allowed: Range | None
    default: Any
    description: str


@cache
def sampling_settings() -> dict[str, Setting]:
    """The fields of SamplingParams by their names.

    >>> setting = sampling_settings()["min_p"]
    >>> setting.type, setting.allowed, setting.default
    (<class 'float'>, Range(low=0, high=1, is_open=False), None)
    >>> setting.description
    'keep the tokens that are at least min_p times as likely as the likeliest, 0 … 1; 0 is off.'
    """
    described = re.findall(
        r"^    (\w+): (.+(?:\n {8}.+)*)", inspect.getdoc(SamplingParams) or "", re.MULTILINE
    )
    descriptions = {name: " ".join(text.split()) for name, text in described}
    found = {}
    hints = get_type_hints(SamplingParams)
    for one in fields(SamplingParams):
        kind, allowed = hints[one.name], one.metadata.get(_RANGE)
        if allowed is not None:
            kind = float if float in get_args(kind) else int
        found[one.name] = Setting(one.name, kind, allowed, one.default, descriptions.get(one.name, ""))
    return found


_RANGES = {
    name: (setting.type is int, setting.allowed)
    for name, setting in sampling_settings().items()
    if setting.allowed is not None
}


def checked_params(params: SamplingParams | None) -> SamplingParams:
    """Return params, or the default ones for None; raise ParameterError for anything else."""
    if params is not None and not isinstance(params, SamplingParams):
        raise ParameterError(f"params must be a SamplingParams; got {shown(params)}")
    return params or SamplingParams()


def _items(name: str, values: Iterable[Any], allowed: str, limit: int) -> list[Any]:
    items = list(islice(values, limit + 1))
    if len(items) > limit:
        raise ParameterError(f"{name} must be {allowed}; got more than {limit:,}")
    return items


def _is_collection(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | bytearray)


def _token_ids(name: str, value: Any) -> tuple[int, ...]:
    """The ids in ascending order, each once."""
    allowed = f"a collection of at most {MAX_TOKEN_IDS:,} token ids, integers in 0 … {MAX_INTEGER}"
    if not _is_collection(value) or isinstance(value, Mapping):
        raise parameter_error(name, allowed, value)
    ids = set()
    for item in _items(name, value, allowed, MAX_TOKEN_IDS):
        token_id = as_int(item)
        if token_id is None or not 0 <= token_id <= MAX_INTEGER:
            raise parameter_error(name, allowed, item)
        ids.add(token_id)
    return tuple(sorted(ids))


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    """(id, bias) pairs in ascending order of id. It takes such pairs too, for dataclasses.replace."""
    allowed = (
        f"a mapping of at most {MAX_TOKEN_IDS:,} token ids, integers in 0 … {MAX_INTEGER}, "
        "to numbers in -100 … 100"
    )
    if not _is_collection(value):
        raise parameter_error("logit_bias", allowed, value)
    biases = {}
    pairs = value.items() if isinstance(value, Mapping) else value
    for pair in _items("logit_bias", pairs, allowed, MAX_TOKEN_IDS):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise parameter_error("logit_bias", allowed, pair)
        token_id, bias = as_int(pair[0]), as_float(pair[1])
        if token_id is None or not 0 <= token_id <= MAX_INTEGER:
            raise parameter_error("logit_bias", allowed, pair[0])
        if bias is None or not -100 <= bias <= 100:
            raise parameter_error("logit_bias", allowed, pair[1])
        biases[token_id] = bias
    return tuple(sorted(biases.items()))


def _strings(name: str, value: Any, allowed: str, limit: int, max_characters: int) -> tuple[str, ...]:
    allowed = f"{allowed} {limit:,} non-empty Unicode strings of at most {max_characters:,} characters"
    if not _is_collection(value) or not isinstance(value, Seq):
        raise parameter_error(name, allowed, value)
    strings = _items(name, value, allowed, limit)
    for item in strings:
        if not isinstance(item, str) or not 1 <= len(item) <= max_characters or not _is_unicode(item):
            raise parameter_error(name, allowed, item)
    return tuple(strings)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode it: a lone surrogate never comes out of a tokenizer."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
