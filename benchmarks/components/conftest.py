"""The models that are timed, made once per session, and what is printed and kept at its end."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure.checkpoints import write_model
from benchmarks.measure.environment import capture_environment
from benchmarks.measure.paths import REPOSITORY, RESULTS
from hgt_infer.export import export_checkpoint

Record = Callable[[str, str, dict[str, Any]], None]
"""(case, line of the summary, what is kept as JSON)."""

_records = pytest.StashKey[list[tuple[str, str, dict[str, Any]]]]()
_environment = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rounds", type=int, default=11, help="timed rounds of each side (default: %(default)s)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_records] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:  # warnings of other libraries are not the matter here
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session", autouse=True)
def environment(request: pytest.FixtureRequest) -> None:
    """Captured before anything runs: the load is that of others."""
    request.config.stash[_environment] = capture_environment()


@pytest.fixture(scope="session")
def num_rounds(request: pytest.FixtureRequest) -> int:
    rounds: int = request.config.getoption("--rounds")
    return rounds


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """GPT-2 124M with seeded random weights, kept from session to session."""
    return write_model(RESULTS)


@pytest.fixture(scope="session", params=["fp32", "int8"])
def artifact(checkpoint: Path, request: pytest.FixtureRequest) -> Path:
    """The checkpoint as this version exports it."""
    output = RESULTS / f"gpt2-124m-{request.param}"
    return export_checkpoint(checkpoint, output, precision=request.param, force=True).path


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Keep a result: its line is printed at the end, its values go into build/bench/CASE.json."""
    config = request.config

    def keep(case: str, line: str, values: dict[str, Any]) -> None:
        config.stash[_records].append((case, line, values))

    return keep


_readings: deque[float] = deque()


def recorded_clock() -> float:
    """Read the next time of the rounds that `replay` gives to pytest-benchmark."""
    return _readings.popleft()


@pytest.fixture
def replay(benchmark: Any) -> Callable[[Sequence[float]], None]:
    """Register rounds that were timed before; needs the mark `benchmark(timer=recorded_clock)`.

    pytest-benchmark times one side of a comparison in a row; here the sides took turns.
    """

    def register(seconds: Sequence[float]) -> None:
        _readings.clear()
        for duration in seconds:
            _readings.extend((0.0, duration))
        benchmark.pedantic(lambda: None, rounds=len(seconds))

    return register


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash[_records]
    if not records:
        return
    terminalreporter.section("hgt_infer benchmarks")
    environment = config.stash[_environment]
    for case in dict.fromkeys(case for case, _, _ in records):
        for name, line, _ in records:
            if name == case:
                terminalreporter.write_line(f"{case} {line}")
        results = [values for name, _, values in records if name == case]
        path = RESULTS / f"{case}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"environment": environment, "results": results}, indent=2) + "\n")
        terminalreporter.write_line(f"kept in {path.relative_to(REPOSITORY)}")
