"""The bodies of OpenAI's completions route: what a client sends, and what it gets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from hgt_infer.sampling_params import (
    MAX_LOGPROBS,
    MAX_REPETITION_PENALTY,
    MAX_SAMPLES,
    MIN_REPETITION_PENALTY,
    SamplingParams,
)

DEFAULT_MAX_TOKENS = 16  # OpenAI's

Count = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(BaseModel):
    """How a stream is told."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What POST /v1/completions takes: OpenAI's parameters, and those of SamplingParams that it lacks.

    None of a setting of sampling is the checkpoint's default. Prompts are texts: the service has one
    tokenizer, and a list of token ids would be that of another.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(max_length=256)
    prompt: str | list[str]
    n: int = Field(1, ge=1, le=MAX_SAMPLES)
    best_of: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    max_tokens: int | None = Field(DEFAULT_MAX_TOKENS, ge=1, lt=2**31)
    min_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Count | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=MIN_REPETITION_PENALTY, le=MAX_REPETITION_PENALTY)
    no_repeat_ngram_size: Count | None = None
    logit_bias: dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], float] | None = None
    bad_words: list[str] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Count] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    seed: int | None = Field(None, ge=0, lt=2**64)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
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
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def sampling_params(self) -> SamplingParams:
        """The settings of every prompt.

        Raises:
            ParameterError: a value outside its range, or a pair that contradicts itself.
        """
        bias = self.logit_bias
        return SamplingParams(
            n=self.n,
            best_of=self.best_of,
            max_tokens=self.max_new_tokens,
            min_tokens=self.min_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            typical_p=self.typical_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
            logit_bias=None if bias is None else {int(token_id): value for token_id, value in bias.items()},
            bad_words=self.bad_words,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            include_stop_str_in_output=self.include_stop_str_in_output,
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if self.echo else None,
        )


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
