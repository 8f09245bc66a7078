"""The body of a request and the page's inputs are made from the fields of SamplingParams."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from hgt_infer.sampling_params import sampling_settings
from hgt_infer.server.page import render_page
from hgt_infer.server.schema import DEFAULT_MAX_TOKENS, CompletionRequest

NOT_SENT = {"logits_processor", "prompt_logprobs"}
PROPERTIES = CompletionRequest.model_json_schema()["properties"]


def as_number(name: str) -> dict[str, Any]:
    """The schema of a number, which may be null."""
    schema: dict[str, Any] = PROPERTIES[name]
    return next((one for one in schema.get("anyOf", ()) if one["type"] != "null"), schema)


@pytest.mark.parametrize("name", sorted(sampling_settings().keys() - NOT_SENT))
def test_a_setting_has_its_range_default_and_description(name: str) -> None:
    setting = sampling_settings()[name]
    assert PROPERTIES[name]["description"] == setting.description
    assert PROPERTIES[name]["default"] == (DEFAULT_MAX_TOKENS if name == "max_tokens" else setting.default)
    if setting.allowed is not None:
        schema = as_number(name)
        low = schema["exclusiveMinimum" if setting.allowed.is_open else "minimum"]
        high = schema["exclusiveMaximum"] - 1 if setting.type is int else schema.get("maximum")
        assert (low, int(high) if name == "seed" else high) == (setting.allowed.low, setting.allowed.high)
        assert schema["type"] == ("integer" if setting.type is int else "number")


def test_what_json_cannot_hold_is_no_field() -> None:
    assert not NOT_SENT & PROPERTIES.keys()
    with pytest.raises(ValidationError, match="prompt_logprobs"):
        CompletionRequest(model="m", prompt="a", prompt_logprobs=1)


def test_every_setting_reaches_sampling() -> None:
    sent = {"n": 2, "best_of": 3, "top_p": 0.5, "stop": ["x"], "allowed_token_ids": [3, 1], "logprobs": 2}
    params = CompletionRequest(
        model="m", prompt="a", logit_bias={"7": -1}, echo=True, **sent
    ).sampling_params()
    assert (params.n, params.best_of, params.top_p, params.stop) == (2, 3, 0.5, ("x",))
    assert (params.allowed_token_ids, params.logit_bias) == ((1, 3), ((7, -1.0),))
    assert (params.logprobs, params.prompt_logprobs, params.max_tokens) == (2, 2, DEFAULT_MAX_TOKENS)


def test_the_inputs_of_the_page_have_the_ranges_of_their_settings() -> None:
    inputs = re.findall(
        r'<label title="([^"]*)">.*?name="(\w+)" type="number" min="(.*?)" max="(.*?)"', render_page()
    )
    assert [name for _, name, *_ in inputs] == ["n", "max_tokens", "temperature", "top_p", "seed"]
    for title, name, low, high in inputs:
        setting = sampling_settings()[name]
        assert title == setting.description
        assert setting.allowed is not None
        assert float(low) in setting.allowed
        assert float(high) in setting.allowed
        assert setting.allowed.is_open or float(low) == setting.allowed.low
