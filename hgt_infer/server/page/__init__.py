"""The page to try a service on: its HTML with inputs for some settings, its style and its script."""

from __future__ import annotations

from html import escape
from pathlib import Path

from hgt_infer.sampling_params import sampling_settings

PAGE = Path(__file__).parent
STATIC_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
"""Name → media type."""

MAX_JS_INTEGER = 2**53 - 1
_INPUTS = (  # name, label, value ("" leaves it to the service), step, largest value that is of use here
    ("n", "Samples", "5", "1", 16),
    ("max_tokens", "Tokens at most", "60", "1", 512),
    ("temperature", "Temperature", "1", "0.05", 3),
    ("top_p", "Top p", "0.95", "0.05", 1),
    ("seed", "Seed", "", "1", MAX_JS_INTEGER),
)


def render_page() -> str:
    """Return the page; ranges and hints of its inputs are those of SamplingParams."""
    inputs = "\n    ".join(_input(*one) for one in _INPUTS)
    return (PAGE / "index.html").read_text(encoding="utf-8").replace("<!-- settings -->", inputs)


def _input(name: str, label: str, value: str, step: str, largest: float) -> str:
    setting = sampling_settings()[name]
    assert setting.allowed is not None
    allowed = setting.allowed
    low = step if allowed.is_open else f"{allowed.low:g}"
    high = largest if allowed.high is None else min(allowed.high, largest)
    given = f'value="{value}" required' if value else 'placeholder="any"'
    return (
        f'<label title="{escape(setting.description)}">{label} '
        f'<input name="{name}" type="number" min="{low}" max="{high}" step="{step}" {given}></label>'
    )
