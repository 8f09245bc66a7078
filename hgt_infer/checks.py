"""Checks of arguments; each raises a ParameterError with the argument's name, range and value."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

from hgt_infer.errors import ParameterError

MAX_INTEGER = 2**31 - 1
"""Largest setting that is a number of tokens, or a token id."""


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers that an argument may be.

    Attributes:
        low: the smallest one.
        high: the largest one; None for no limit.
        is_open: low itself is outside.

    >>> print(Range(0, 1, is_open=True)), print(Range(0))
    a number in (0, 1]
    a finite number >= 0
    (None, None)
    """

    low: float
    high: float | None = None
    is_open: bool = False

    def __contains__(self, number: float) -> bool:
        above = self.low < number if self.is_open else self.low <= number
        return above and (self.high is None or number <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"a finite number {'>' if self.is_open else '>='} {self.low:g}"
        return f"a number in {'(' if self.is_open else '['}{self.low:g}, {self.high:g}]"


def check_int(name: str, value: Any, low: int, high: int = MAX_INTEGER) -> int:
    """Return value as an int; raise ParameterError unless it is an integer (no bool) in low … high."""
    number = as_int(value)
    if number is None or not low <= number <= high:
        raise parameter_error(name, f"an integer in {low} … {high}", value)
    return number


def check_number(name: str, value: Any, allowed: Range) -> float:
    """Return value as a float; raise ParameterError unless it is a finite number within the range."""
    number = as_float(value)
    if number is None or not math.isfinite(number) or number not in allowed:
        raise parameter_error(name, str(allowed), value)
    return number


def check_bool(name: str, value: Any) -> bool:
    """Return value; raise ParameterError unless it is True or False."""
    if not isinstance(value, bool):
        raise parameter_error(name, "True or False", value)
    return value


def shown(value: object) -> str:
    """Return value as the message of an error shows it: short, whatever it is.

    >>> shown(-1), shown("a" * 10**6), shown(10**5000), shown([1, 2])
    ('-1', "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'", 'an integer of 16610 bits', 'a value of type list')
    """
    if isinstance(value, str):
        text = str.__getitem__(value, slice(31))
        return repr(text if len(text) <= 30 else text[:30] + "…")
    if value is None or isinstance(value, bool):
        return repr(value)
    integer = as_int(value)
    if integer is not None:  # Python refuses to print an integer of more than 4,300 digits
        return str(integer) if integer.bit_length() <= 128 else f"an integer of {integer.bit_length()} bits"
    number = as_float(value)
    return f"a value of type {type(value).__name__:.60}" if number is None else repr(number)


def parameter_error(name: str, allowed: str, value: object) -> ParameterError:
    """Return the error for a value that is not what is allowed."""
    return ParameterError(f"{name} must be {allowed}; got {shown(value)}")


def as_int(value: Any) -> int | None:
    """Return an integer as an int; None for anything else, a bool included."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def as_float(value: Any) -> float | None:
    """Return a real number as a float, infinity beyond its range; None for anything else, a bool included."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction beyond float's range
        return math.inf
