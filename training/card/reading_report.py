"""Prints what was read of each person's tweets: the counts, a table of years, and the first tweets kept.

Counting is `cleaning`'s matter; nothing here reads a file.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

BAR_WIDTH = 30
ZERO_WIDTH_JOINER = "\u200d"  # holds emoji together
_CONTROL = ("Cc", "Cf")
_COUNTS = (
    ("tweets downloaded", "downloaded"),
    ("retweets", "retweets"),
    ("short", "short"),
    ("replies dropped", "replies"),
    ("tweets kept", "kept"),
)


def print_report(users: Sequence[Mapping[str, Any]], first_texts: Mapping[str, Sequence[str]]) -> None:
    """Print what was read of each user, no wider than the terminal, or 80 columns where there is none.

    Args:
        users: the records of `users` in dataset.json.
        first_texts: the first kept tweets by handle.

    >>> counts = {"downloaded": 3, "retweets": 1, "short": 0, "replies": 0, "kept": 2}
    >>> user = {"handle": "goose", "counts": counts, "num_duplicates": 0, "num_replies": 1}
    >>> print_report([{**user, "per_year": {"2020": 3}}], {"goose": ["honk at dawn"]})
    @goose
      tweets downloaded        3
      retweets                 1
      short                    0
      replies dropped          0
      tweets kept              2
      replies read             1
      repeated tweets          0
    <BLANKLINE>
      2020                     3  ██████████████████████████████
    <BLANKLINE>
      first tweets kept
      1  honk at dawn
    <BLANKLINE>
    """
    width = shutil.get_terminal_size((80, 24)).columns
    for user in users:
        _print(f"@{user['handle']}")
        for label, field in _COUNTS:
            _print_row(label, user["counts"][field])
        _print_row("replies read", user["num_replies"])
        _print_row("repeated tweets", user["num_duplicates"])
        _print()
        if user["per_year"]:
            longest, most = max(1, min(BAR_WIDTH, width - 30)), max(user["per_year"].values())
            for year, number in user["per_year"].items():
                _print_row(year, number, "  " + "█" * max(1, round(longest * number / most)))
            _print()
        if texts := first_texts.get(user["handle"]):
            _print("  first tweets kept")
            for number, text in enumerate(texts, start=1):
                _print(f"  {number}  {cut(text, width - 6)}")
            _print()


def cut(text: str, width: int) -> str:
    r"""Return a text on one line without control characters, cut to a number of columns.

    Wide characters take two columns.

    >>> cut("soup\nand bread", 9), cut("ありがとう", 7)
    ('soup and…', 'ありが…')
    """
    # Escape sequences would reach the terminal, and marks of direction the rest of the line.
    line = "".join(
        c for c in " ".join(text.split()) if c == ZERO_WIDTH_JOINER or unicodedata.category(c) not in _CONTROL
    )
    ends = list(accumulate(map(_num_columns, line)))
    if not ends or ends[-1] <= width:
        return line
    return line[: bisect_right(ends, width - 1)] + "…"


def _num_columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):  # accents, variation selectors, joiners
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1


def _print_row(label: str, number: int, bar: str = "") -> None:
    _print(f"  {label:<17}{number:>9}{bar}")


def _print(line: str = "") -> None:
    encoding = sys.stdout.encoding or "utf-8"
    print(line.encode(encoding, "replace").decode(encoding))  # not every terminal has all characters
