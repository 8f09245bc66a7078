"""The service against its own OpenAPI document, by requests that are made from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from hgt_infer import Generator
from hgt_infer.server import Limits, create_app

pytestmark = pytest.mark.integration

ROUTES = [
    *("POST /v1/completions", "GET /v1/models", "GET /v1/models/{model}"),
    *("GET /health", "GET /health/live", "GET /health/ready", "GET /metrics"),
]
NOT_CHECKED = "positive_data_acceptance"
"""What the document allows may still ask for too much, or for a model that is not there."""


@pytest.fixture(scope="module")
def api(generator: Generator) -> Any:
    import schemathesis  # which takes a second

    app = create_app({"goose": generator}, limits=Limits(max_tokens_per_request=64))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.filterwarnings("ignore")
def test_answers_are_what_the_document_says(api: Any, route: str) -> None:
    from schemathesis.checks import CHECKS

    method, path = route.split()
    excluded = [check for check in CHECKS.get_all() if check.__name__ == NOT_CHECKED]
    assert excluded

    @given(case=api[path][method].as_strategy())
    @settings(max_examples=50, suppress_health_check=list(HealthCheck), database=None)
    def check(case: Any) -> None:
        case.call_and_validate(excluded_checks=excluded)

    check()


def test_the_document_has_every_route(generator: Generator) -> None:
    paths = create_app({"goose": generator}).openapi()["paths"]
    routes = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert sorted(routes) == sorted(ROUTES)
    assert "422" not in paths["/v1/completions"]["post"]["responses"]
