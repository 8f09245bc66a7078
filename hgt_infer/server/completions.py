"""From a completion request to its answer: at once, or as a stream of events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

import hgt_infer
from hgt_infer.generator import Generator
from hgt_infer.outputs import Completion, Delta, GenerationOutput, TokenLogprobs
from hgt_infer.sampling_params import SamplingParams
from hgt_infer.server.errors import RequestError, as_request_error
from hgt_infer.server.limits import Limits
from hgt_infer.server.schema import CompletionRequest

CLIENT_GONE = 499  # nginx's; nobody reads it but the log

Result = TypeVar("Result")


class ClientGoneError(Exception):
    """The client went away before its answer began."""


async def complete(
    generator: Generator, asked: CompletionRequest, request: Request, limits: Limits
) -> Response:
    """Answer a completion request. Where the client goes away, its slots are free within a step.

    Raises:
        RequestError, HgtInferError: what is wrong with it.
    """
    check_size(asked, limits)
    params = asked.sampling_params()
    head = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": asked.model,
        # OpenAI's name for what a seed's text depends on beside the request.
        "system_fingerprint": f"hgt_infer-{hgt_infer.__version__}-{generator.kernels}",
    }
    try:
        if not asked.stream:
            outputs = await _while_connected(request, generator.agenerate(asked.prompts, params))
            usage = _usage(
                sum(len(output.prompt_token_ids) for output in outputs),
                sum(len(sample.token_ids) for output in outputs for sample in output.completions),
            )
            request.state.usage = usage
            return JSONResponse({**head, "choices": _choices(generator, outputs, asked), "usage": usage})
        deltas = cast("AsyncGenerator[Delta]", generator.astream(asked.prompts, params))
        # What is wrong with the request comes before its first delta, and has a status of its own.
        first = await _while_connected(request, anext(deltas))
    except ClientGoneError:
        return Response(status_code=CLIENT_GONE)
    events = _events(generator, asked, params, head, first, deltas, request, limits)
    return EventStream(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def check_size(asked: CompletionRequest, limits: Limits) -> None:
    """Refuse what asks for too much, or for what cannot be had together."""
    num_prompts = len(asked.prompts)
    if not 1 <= num_prompts <= limits.max_prompts:
        raise RequestError(
            400, f"prompt must be 1 … {limits.max_prompts} texts; got {num_prompts}", param="prompt"
        )
    num_tokens = num_prompts * max(asked.n, asked.best_of or 1) * asked.max_new_tokens
    if num_tokens > limits.max_tokens_per_request:
        raise RequestError(
            400,
            f"prompts · samples · max_tokens must be at most {limits.max_tokens_per_request:,}; "
            f"got {num_tokens:,}",
            param="max_tokens",
        )
    if asked.stream and asked.echo and asked.logprobs is not None:
        raise RequestError(400, "echo with logprobs cannot be streamed", param="echo")
    if asked.stream_options is not None and not asked.stream:
        raise RequestError(400, "stream_options needs stream", param="stream_options")


class EventStream(StreamingResponse):
    """Events that end with the answer, however it ends: what they wait for is cancelled then."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(cast("AsyncGenerator[str]", self.body_iterator)):
            await super().__call__(scope, receive, send)


async def _events(
    generator: Generator,
    asked: CompletionRequest,
    params: SamplingParams,
    head: dict[str, Any],
    first: Delta,
    deltas: AsyncGenerator[Delta],
    request: Request,
    limits: Limits,
) -> AsyncIterator[str]:
    """The data of each event: a choice that has grown, then the usage where it was asked for."""
    num_tokens = num_prompt_tokens = 0
    offsets: dict[int, int] = {}  # characters of each choice so far
    options = asked.stream_options
    with_usage = options is not None and options.include_usage
    is_continuous = options is not None and with_usage and options.continuous_usage_stats
    try:
        async with aclosing(deltas):
            if is_continuous:
                num_prompt_tokens = await _count_prompt_tokens(generator, asked)
            async for delta in _chain(first, deltas):
                num_tokens += len(delta.token_ids)
                index = delta.prompt_index * params.n + delta.sample_index
                text = delta.text
                if asked.echo and index not in offsets:
                    text = asked.prompts[delta.prompt_index] + text
                offset = offsets.get(index, 0)
                offsets[index] = offset + len(text)
                logprobs = None
                if delta.logprobs is not None:
                    logprobs = token_logprobs(generator, delta.token_ids, delta.logprobs, offset)
                choice = _choice(index, text, logprobs, delta)
                event = {**head, "choices": [choice]}
                if with_usage:
                    event["usage"] = _usage(num_prompt_tokens, num_tokens) if is_continuous else None
                yield _event(event)
        usage = {"completion_tokens": num_tokens}
        if with_usage:
            if not is_continuous:  # counted here, so that no first event waits for it
                num_prompt_tokens = await _count_prompt_tokens(generator, asked)
            usage = _usage(num_prompt_tokens, num_tokens)
            yield _event({**head, "choices": [], "usage": usage})
        request.state.usage = usage
        yield "data: [DONE]\n\n"
    except Exception as error:  # the status has been sent: an event has to tell
        yield _event(as_request_error(error, limits).detail())


async def _count_prompt_tokens(generator: Generator, asked: CompletionRequest) -> int:
    return sum(map(len, await asyncio.to_thread(generator.encode, asked.prompts)))


async def _chain(first: Delta, rest: AsyncIterator[Delta]) -> AsyncIterator[Delta]:
    yield first
    async for delta in rest:
        yield delta


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _choices(
    generator: Generator, outputs: Iterable[GenerationOutput], asked: CompletionRequest
) -> list[dict[str, Any]]:
    choices: list[dict[str, Any]] = []
    for output in outputs:
        for sample in output.completions:
            text = output.prompt + sample.text if asked.echo else sample.text
            logprobs = _all_logprobs(generator, output, sample, asked)
            choices.append(_choice(len(choices), text, logprobs, sample))
    return choices


def _choice(index: int, text: str, logprobs: dict[str, Any] | None, of: Completion | Delta) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": of.finish_reason,
        "stop_reason": of.stop_reason,
    }


def _all_logprobs(
    generator: Generator, output: GenerationOutput, sample: Completion, asked: CompletionRequest
) -> dict[str, Any] | None:
    if sample.logprobs is None:
        return None
    if not asked.echo or output.prompt_logprobs is None:
        return token_logprobs(generator, sample.token_ids, sample.logprobs, 0)
    token_ids = output.prompt_token_ids + sample.token_ids
    return token_logprobs(generator, token_ids, output.prompt_logprobs + sample.logprobs, 0)


def token_logprobs(
    generator: Generator,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    offset: int,
) -> dict[str, Any]:
    """Return OpenAI's form of the log-probabilities of tokens, the first of which begins at the offset."""
    texts = [generator.decode([token_id]) for token_id in token_ids]
    return {
        "tokens": texts,
        "token_logprobs": [token and token.logprob for token in logprobs],
        "top_logprobs": [
            token and {generator.decode([id_]): logprob for id_, logprob in token.top} for token in logprobs
        ],
        "text_offset": [*accumulate(map(len, texts[:-1]), initial=offset)],
    }


def _usage(num_prompt_tokens: int, num_completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_completion_tokens,
        "total_tokens": num_prompt_tokens + num_completion_tokens,
    }


async def _while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Await work; cancel it where the client goes away before it is done.

    Raises:
        ClientGoneError: the client went away.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
