"""The FastAPI application: routes in OpenAI's form over one or several generators."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

import hgt_infer
from hgt_infer.errors import ParameterError
from hgt_infer.generator import Generator
from hgt_infer.server.completions import complete
from hgt_infer.server.errors import ErrorBody, RequestError, install_handlers
from hgt_infer.server.guard import Guard
from hgt_infer.server.limits import Limits
from hgt_infer.server.metrics import Metrics
from hgt_infer.server.page import PAGE, STATIC_FILES, render_page
from hgt_infer.server.schema import CompletionRequest, CompletionResponse, Health, Model, ModelList

_CONTENT_POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "A parameter or the body is wrong.",
        401: "No valid API key.",
        404: "No such model.",
        408: "The body took too long.",
        413: "The body is too large.",
        429: "Too many requests, or a full queue: try again after Retry-After seconds.",
        503: "The model has stopped.",
    }.items()
}
_COMMON: dict[int | str, dict[str, Any]] = {status: _ERRORS[status] for status in (401, 408, 413)}


def create_app(
    generators: Mapping[str, Generator],
    *,
    limits: Limits | None = None,
    api_keys: Sequence[str] = (),
) -> FastAPI:
    """Make the application. The generators stay the caller's, to be closed after it.

    Args:
        generators: by the name that clients know their model by; at least one.
        limits: None is Limits().
        api_keys: non-empty; one of them has to come with every request but health's. None: all may pass.

    Raises:
        ParameterError: no generator, or an empty key.

    Example:
        with Generator("huggingtweets/lilyw12_") as generator:
            uvicorn.run(create_app({"lilyw12_": generator}))
    """
    if not generators:
        raise ParameterError("a service needs at least one model; got none")
    if not all(api_keys):
        raise ParameterError("an API key must not be empty")
    limits = limits or Limits()
    metrics = Metrics(generators)
    created = int(time.time())
    html = render_page()
    app = FastAPI(
        title="hgt_infer", version=hgt_infer.__version__, docs_url=None, redoc_url=None, responses=_COMMON
    )
    app.add_middleware(Guard, limits=limits, api_keys=api_keys, metrics=metrics)
    install_handlers(app, limits)

    def find(model: str) -> Generator:
        generator = generators.get(model)
        if generator is None:
            raise RequestError(
                404, "no such model: GET /v1/models lists them", param="model", code="model_not_found"
            )
        return generator

    @app.post(
        "/v1/completions",
        response_model=CompletionResponse,
        responses={
            **_ERRORS,
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        },
    )
    async def completions(asked: CompletionRequest, request: Request) -> Response:
        """Sample texts that go on after the prompts; with `stream` as server-sent events."""
        return await complete(find(asked.model), asked, request, limits)

    @app.get("/v1/models")
    async def models() -> ModelList:
        """The models that there are."""
        return ModelList(data=[Model(id=name, created=created) for name in generators])

    @app.get("/v1/models/{model:path}", responses={404: _ERRORS[404]})
    async def model(model: str) -> Model:
        """One of them."""
        find(model)
        return Model(id=model, created=created)

    @app.get("/health")
    @app.get("/health/live")
    async def live() -> Health:
        """Whether the process answers."""
        return Health(status="live")

    @app.get("/health/ready", responses={503: {"model": Health}})
    async def ready() -> Response:
        """Whether every model takes requests."""
        is_ready = all(generator.is_alive for generator in generators.values())
        body = Health(status="ready" if is_ready else "not ready")
        return JSONResponse(body.model_dump(), 200 if is_ready else 503)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def read_metrics() -> Response:
        """Counts and times in Prometheus's text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        headers = {"Content-Security-Policy": _CONTENT_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(html, headers=headers)

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in STATIC_FILES:
            raise RequestError(404, "no such page")
        return FileResponse(PAGE / name, media_type=STATIC_FILES[name])

    _describe_errors(app)
    return app


def _describe_errors(app: FastAPI) -> None:
    """Take FastAPI's own 422 out of the OpenAPI document: what is wrong with a request is 400 here."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document = original()
        for methods in document["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
