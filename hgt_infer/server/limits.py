"""Limits: what a service takes of one request, and of all at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from hgt_infer.checks import Range, check_number


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the work that a service does; each is a number > 0.

    Attributes:
        max_body_bytes: of a request.
        body_timeout_s: seconds in which a request's body has to be there.
        max_prompts: of a request.
        max_tokens_per_request: prompts · samples · max_tokens.
        max_concurrent_requests: completions that are answered at once; more are told to try again.
        retry_after_s: when, in whole seconds.
    """

    max_body_bytes: int = 1 << 20
    body_timeout_s: float = 10.0
    max_prompts: int = 256
    max_tokens_per_request: int = 65_536
    max_concurrent_requests: int = 1_024
    retry_after_s: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            check_number(field.name, getattr(self, field.name), Range(0, is_open=True))
