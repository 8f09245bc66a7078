"""The bodies of OpenAI's completions route: what a client sends, and what it gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from hgt_infer.checks import MAX_INTEGER
from hgt_infer.sampling_params import SamplingParams, Setting, sampling_settings

DEFAULT_MAX_TOKENS = 16  # OpenAI's

TokenId = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
_JSON_TYPES: dict[str, Any] = {
    "logit_bias": dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], float],
    "allowed_token_ids": list[TokenId],
    "stop_token_ids": list[TokenId],
    "bad_words": list[str],
    "stop": str | list[str],
}
"""Of settings that are neither numbers nor flags."""
_NOT_IN_JSON = ("logits_processor", "prompt_logprobs")  # a function; what `echo` with `logprobs` asks for


def _field(setting: Setting) -> tuple[Any, Any]:
    """A setting of SamplingParams as pydantic takes a field: its type, its default and range."""
    allowed = setting.allowed
    options: dict[str, Any] = {"description": setting.description}
    if allowed is not None:
        options["gt" if allowed.is_open else "ge"] = allowed.low
        if setting.type is int and allowed.high is not None:
            options["lt"] = allowed.high + 1  # pydantic writes floats: 2**64 is one, 2**64 - 1 is none
        else:
            options["le"] = allowed.high
    default = DEFAULT_MAX_TOKENS if setting.name == "max_tokens" else setting.default
    kind = _JSON_TYPES.get(setting.name, setting.type)
    return (kind | None if setting.default is None else kind), Field(default, **options)


_fields: dict[str, Any] = {
    name: _field(setting) for name, setting in sampling_settings().items() if name not in _NOT_IN_JSON
}
_Settings = create_model("_Settings", **_fields)


class StreamOptions(BaseModel):
    """How a stream is told."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    continuous_usage_stats: bool = Field(
        False, description="with `include_usage`: every event has the usage so far (vLLM's)"
    )


class CompletionRequest(_Settings):  # type: ignore[misc, valid-type]
    """What POST /v1/completions takes: OpenAI's parameters, and those of SamplingParams that it lacks.

    None of a setting of sampling is the checkpoint's default. Prompts are texts: the service has one
    tokenizer, and a list of token ids would be that of another.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=256)
    prompt: str | list[str]
    echo: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    suffix: None = Field(None, description="not supported")
    user: str | None = Field(None, max_length=256, description="not used")

    @property
    def prompts(self) -> list[str]:
        """A list of them, whatever was sent."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def max_new_tokens(self) -> int:
        """Of each sample."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else int(self.max_tokens)

    def sampling_params(self) -> SamplingParams:
        """The settings of every prompt.

        Raises:
            ParameterError: a value outside its range, or a pair that contradicts itself.
        """
        given = {name: getattr(self, name) for name in _Settings.model_fields}
        if given["logit_bias"] is not None:
            given["logit_bias"] = {int(token_id): bias for token_id, bias in given["logit_bias"].items()}
        given["max_tokens"] = self.max_new_tokens
        return SamplingParams(**given, prompt_logprobs=self.logprobs if self.echo else None)


class Logprobs(BaseModel):
    """Of each token of a text: itself, its log-probability, the likeliest ones, where it begins."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    """A sample, or what it has grown by; samples of the second prompt follow those of the first."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None


class Usage(BaseModel):
    """Tokens of prompts, of samples, and of both."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    """What POST /v1/completions gives; with `stream` the data of each event, the last of which is [DONE]."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None
    system_fingerprint: str


class Model(BaseModel):
    """A model of the service."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "hgt_infer"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    """Whether the service runs, or takes requests."""

    status: Literal["live", "ready", "not ready"]
