"""The table of the settings that backends were tried with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages.blocks import Table


def trials_table(result: Mapping[str, Any]) -> Table:
    """A row for each trial of `python -m benchmarks tune`, with the medians of its cases and what failed.

    A * marks a case with timings that others on the machine disturbed.
    """
    trials = [(name, *trial) for name, tried in result["tried"].items() for trial in tried.items()]
    cases = dict.fromkeys(case for *_, rates in trials for case in rates if case != "error")
    return Table(
        ["", "", *cases, ""],
        [
            [
                name,
                trial,
                *(_median(rates[case]) if case in rates else "" for case in cases),
                rates.get("error", ""),
            ]
            for name, trial, rates in trials
        ],
    )


def _median(rates: Mapping[str, Any]) -> str:
    return f"{rates['median']:,.0f}{'*' if rates['num_disturbed'] else ''}"
