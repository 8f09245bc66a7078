"""Errors in OpenAI's form: {"error": {"message", "type", "param", "code"}}, without anything internal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from hgt_infer.errors import EngineError, HgtInferError, ParameterError, PromptError, QueueFullError
from hgt_infer.server.limits import Limits

logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ErrorDetail(BaseModel):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """What every answer but a success has."""

    error: ErrorDetail


class RequestError(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: for whoever sent it.
        param: the parameter that is at fault.
        code: a word for programs.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def detail(self) -> dict[str, Any]:
        """The body of the answer."""
        default = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, default)
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.detail(), self.status, headers=dict(self.headers or {}))


def too_many(message: str, code: str, limits: Limits) -> RequestError:
    """An error that passes: the client is told when to try again."""
    return RequestError(429, message, code=code, headers={"Retry-After": str(limits.retry_after_s)})


def as_request_error(error: Exception, limits: Limits) -> RequestError:
    """Return what a client is told of an exception; what is none of its business goes to the log."""
    match error:
        case RequestError():
            return error
        case QueueFullError():
            return too_many("the queue is full", "queue_full", limits)
        case ParameterError() | PromptError():
            name = str(error).partition(" ")[0]
            return RequestError(400, str(error), param=name if name.isidentifier() else None)
        case EngineError():
            return RequestError(503, "the model has stopped", code="engine_stopped")
        case HTTPException():
            return RequestError(error.status_code, str(error.detail), headers=error.headers)
        case RequestValidationError():
            return _invalid(error)
    logger.exception("a request failed", exc_info=error)
    return RequestError(500, "an error of the service", code="internal_error")


def _invalid(error: RequestValidationError) -> RequestError:
    """The first thing that is wrong with a body; what was sent is not repeated."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:]]
    if first["type"] == "json_invalid":
        return RequestError(400, "the body is not JSON", code="invalid_json")
    name = next((part for part in where if part.isidentifier()), None)
    return RequestError(400, f"{'.'.join(where[:2]) or 'the body'}: {first['msg']}", param=name)


def install_handlers(app: FastAPI, limits: Limits) -> None:
    """Let the app answer every exception in this form."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        return as_request_error(error, limits).response()

    for kind in (RequestError, HgtInferError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
