"""Results of the check of a GPU's steps, and the sizes of the tiny model that is checked."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.report import Result

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 128, "n_positions": 256, "vocab_size": 400}


def results_of(found: Any) -> list[Result]:
    """A step gives one result, or several as they come."""
    return [found] if isinstance(found, Result) else list(found)


def assert_all_passed(found: Any) -> list[Result]:
    results = results_of(found)
    assert {result.status for result in results} == {"passed"}, results
    return results
