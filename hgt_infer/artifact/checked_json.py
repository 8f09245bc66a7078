"""Reads JSON of unknown origin: bounded, and each value checked for type and range.

What is refused is named in a ModelFormatError with the path, the expected and the found.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hgt_infer.errors import ModelFormatError

_MAX_JSON_BYTES = 1 << 20


def format_error(path: Path, expected: str, found: object) -> ModelFormatError:
    """Return a ModelFormatError with the three parts of its message; `found` is shortened."""
    shown = found if isinstance(found, str) else reprlib.repr(found)
    return ModelFormatError(f"{path}: expected {expected}, found {shown}")


def read_json_object(path: Path, *, max_bytes: int = _MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Args:
        path: the file.
        max_bytes: a larger file is refused unread.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFormatError: too large, not UTF-8, not JSON, NaN or Infinity in it, or not an object.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise format_error(path, f"at most {max_bytes} bytes", "a larger file")
    try:
        values = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, UnicodeDecodeError
        raise format_error(path, "JSON", str(error)) from error
    if not isinstance(values, dict):
        raise format_error(path, "a JSON object", values)
    return values


def check_keys(path: Path, what: str, values: Mapping[str, Any], expected: set[str]) -> None:
    """Raise ModelFormatError unless `what`, read from `path`, has exactly the expected keys."""
    if values.keys() != expected:
        missing, unknown = sorted(expected - values.keys()), sorted(values.keys() - expected)
        raise format_error(
            path, f"{what} to have {', '.join(sorted(expected))}", f"missing {missing}, unknown {unknown}"
        )


def check_integer(path: Path, name: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is an integer from `low` to `high`, else raise ModelFormatError."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise format_error(path, f"{name} to be an integer from {low} to {high}", value)
    return value


def check_number(path: Path, name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float if it is a number from `low` to `high`, else raise ModelFormatError."""
    # NaN and infinity are outside every range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise format_error(path, f"{name} to be a number from {low} to {high}", value)
    return float(value)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
