"""The examples of README and of docstrings run as they are written, on the tiny checkpoint."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from hgt_infer import Generator

ROOT = Path(__file__).parents[1]
HUB_ID = '"huggingtweets/lilyw12_"'


def example(docstring: str | None) -> str:
    """The code below "Example:" in a docstring."""
    return textwrap.dedent(re.split(r"Example:\n", docstring or "")[1])


def test_the_readmes_example_runs(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code.replace(HUB_ID, repr(str(artifact))), {})
    lines = capsys.readouterr().out
    assert lines.count("My dream is") >= 5


def test_the_examples_of_the_generator_run(artifact: Path) -> None:
    names = {"Generator": Generator}
    exec("from hgt_infer import SamplingParams\n", names)
    for documented in (Generator, Generator.generate):
        exec(example(documented.__doc__).replace(HUB_ID, repr(str(artifact))), names)


def test_every_file_of_the_readmes_tree_exists() -> None:
    tree = (ROOT / "README.md").read_text().split("```\nhgt_infer/\n")[1].split("```")[0]
    for line in tree.splitlines():
        name = line.split()[0]
        folder = ROOT / "hgt_infer" if line.startswith("  ") else ROOT
        assert (folder / name).exists(), name
    documented = {line.split()[0] for line in tree.splitlines() if line.startswith("  ")}
    modules = {path.name for path in (ROOT / "hgt_infer").glob("*.py")} - {"__init__.py"}
    assert modules <= documented
